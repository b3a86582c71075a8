"""Detection splits: TFDS data sets in the layout of its coco, and folders in COCO's own format.

Of TFDS any data set will do whose features are those of coco/2017:

    image: Image, image/filename: Text, image/id: int, objects: Sequence of
    {area: int, bbox: BBoxFeature, is_crowd: bool, label: ClassLabel}

TFDS stores boxes relative to the image, whose size is read from the file's header, and areas in
whole pixels. Its labels are numbered without gaps; for coco the official category ids are restored.

Bad input: TFDS itself refuses boxes outside the image and unknown labels when a data set is
prepared. Boxes without area (COCO's training set has two) are left out when their image is read,
and counted in `skipped`, which therefore tells of the images that this process has read. A split
whose first images hold no box, such as coco's test, is refused.
"""

import io
import os
from collections import Counter
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sasa_jax.data.builders import full_name, open_builder
from sasa_jax.data.catalog import COCO_FOLDER, DatasetError
from sasa_jax.data.coco_folder import CocoFolder
from sasa_jax.data.detection_split import Category, DetectionSplit

# COCO numbers its 80 categories from 1 to 90, without these.
COCO_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# Images in which a split that can be trained on or scored has at least one box.
_PROBED = 100


def open_detection_split(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> DetectionSplit:
    """Open one split of a detection data set.

    Args:
      name: TFDS's name as in `open_split`, e.g. "coco/2017"; "digit_scenes", which is prepared on
        first use; or "coco_folder" for a folder of images with an instances.json, see coco_folder.
      split: TFDS's split string; of a COCO folder the name of the subfolder.
      data_dir: where data sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets. For
        "coco_folder" the folder that holds the splits, which has no default.

    Raises:
      DatasetError: as `open_split`; another feature layout; no boxes; a bad instances.json.
    """
    if name == COCO_FOLDER:
        return CocoFolder(data_dir, split)
    builder = open_builder(name, split, data_dir)
    _check_features(builder)
    return TfdsDetectionSplit(builder, split)


class TfdsDetectionSplit(DetectionSplit):
    """A split of a TFDS data set in coco's feature layout."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        label = builder.info.features["objects"].feature["label"]
        super().__init__(
            full_name(builder),
            split,
            _categories(builder.info.name, label),
            builder.data_dir,
        )
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        # By image, so that reading one again does not count it again.
        self._without_area: dict[int, int] = {}
        probed = range(min(_PROBED, len(self)))
        if not any(len(self._example(i)["boxes"]) for i in probed):
            raise DatasetError(
                f"{self.name} {split} has no box in its first {len(probed)} images: nothing to "
                "train on or to score (coco's test split has no public annotations)."
            )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def skipped(self) -> Counter[str]:
        number = sum(self._without_area.copy().values())
        return Counter({"boxes without area left out": number} if number else {})

    def _annotations(self, index: int) -> dict[str, Any]:
        example = self._example(index)
        del example["image"]
        return example

    def _example(self, index: int) -> dict[str, Any]:
        stored = self._source[index]
        objects = stored["objects"]
        with Image.open(io.BytesIO(stored["image"])) as header:
            width, height = header.size
        boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
        sides = np.array([height, width, height, width], np.float32)
        # Rounding may lead out of the image by a ten thousandth.
        boxes = np.minimum(boxes * sides, sides)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if not kept.all():
            self._without_area[index] = int((~kept).sum())
        return {
            "image": stored["image"],
            "boxes": boxes[kept],
            "classes": np.asarray(objects["label"], np.int32)[kept],
            "crowd": np.asarray(objects["is_crowd"], np.bool_)[kept],
            "area": np.asarray(objects["area"], np.float64)[kept],
            "image_id": int(stored["image/id"]),
            "file_name": stored["image/filename"].decode(),
            "height": height,
            "width": width,
            "index": index,
        }


def _categories(name: str, label: tfds.features.ClassLabel) -> tuple[Category, ...]:
    ids = range(1, label.num_classes + 1)
    if name == "coco":
        ids = [i for i in range(1, 91) if i not in COCO_UNUSED_IDS]
    return tuple(Category(*pair) for pair in zip(ids, label.names, strict=True))


def _check_features(builder: tfds.core.DatasetBuilder) -> None:
    features = builder.info.features
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    objects = getattr(found.get("objects"), "feature", {})
    layout = {"area", "bbox", "is_crowd", "label"}
    if not {"image", "image/filename", "image/id"} <= found.keys() or not layout <= set(objects):
        raise DatasetError(
            f"{builder.info.full_name} is no detection data set in the layout of TFDS's coco: its "
            f"features are {', '.join(sorted(found)) or type(features).__name__}; needed are "
            f"image, image/filename, image/id and objects with {', '.join(sorted(layout))}."
        )
