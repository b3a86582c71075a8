"""Detection splits: TFDS data sets in the layout of its coco, and folders in COCO's own format.

Of TFDS any data set will do whose features are those of coco/2017:

    image: Image, image/filename: Text, image/id: int, objects: Sequence of
    {area: int, bbox: BBoxFeature, is_crowd: bool, label: ClassLabel}

TFDS stores boxes relative to the image, whose size is read from the file's header, and areas in
whole pixels. Its labels are numbered without gaps; for coco the official category ids are restored.

Bad input: TFDS itself refuses boxes outside the image and unknown labels when a data set is
prepared. Where it holds one all the same (outside by more than a pixel, which rounding is not), or
an image that is none, the example is a CorruptRecord. Boxes without area (COCO's training set has
two) are left out when their image is read, and counted in `skipped`, which therefore tells of the
images that this process has read. A split whose first images hold no box, such as coco's test, is
refused.
"""

import os
from collections import Counter
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sasa_jax.data.builders import full_name, open_builder
from sasa_jax.data.catalog import COCO_FOLDER, DatasetError
from sasa_jax.data.coco_folder import CocoFolder
from sasa_jax.data.corrupt import CorruptRecord
from sasa_jax.data.detection_split import Category, DetectionSplit, stored_size
from sasa_jax.data.records import Records

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
        self._records = Records(builder, split)
        # By image, so that reading one again does not count it again.
        self._without_area: dict[int, int] = {}
        if not self._probe():
            raise DatasetError(
                f"{self.name} {split} has no box in its first {min(_PROBED, len(self))} images: "
                "nothing to train on or to score (coco's test split has no public annotations)."
            )

    def __len__(self) -> int:
        return len(self._records)

    @property
    def skipped(self) -> Counter[str]:
        number = sum(self._without_area.copy().values())
        return Counter({"boxes without area left out": number} if number else {})

    def _annotations(self, index: int) -> dict[str, Any]:
        example = self._example(index)
        del example["image"]
        return example

    def _example(self, index: int) -> dict[str, Any]:
        stored = self._records[index]
        objects, file_name = stored["objects"], stored["image/filename"].decode(errors="replace")
        height, width = stored_size(stored["image"], file_name)
        boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
        sides = np.array([height, width, height, width], np.float32)
        boxes = self._checked(boxes * sides, objects["label"], sides, file_name)
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
            "file_name": file_name,
            "height": height,
            "width": width,
            "index": index,
        }

    def _checked(
        self, boxes: np.ndarray, labels: Any, sides: np.ndarray, file_name: str
    ) -> np.ndarray:
        """The boxes, cut where rounding led out of the image; it does so by a ten thousandth."""
        wrong = ~((boxes >= -1) & (boxes <= sides + 1)).all(axis=1)
        if wrong.any():
            box = ", ".join(f"{side:g}" for side in boxes[wrong.argmax()])
            reason = f"a box ({box}) is not within its {sides[0]:g} x {sides[1]:g} pixels"
            raise CorruptRecord(reason, file_name)
        if unknown := [label for label in labels if not 0 <= label < self.num_classes]:
            reason = f"a label is {unknown[0]}; expected 0 to {self.num_classes - 1}"
            raise CorruptRecord(reason, file_name)
        return boxes.clip(0, sides)

    def _probe(self) -> bool:
        """If any of the first images has a box."""
        for index in range(min(_PROBED, len(self))):
            try:
                if len(self._example(index)["boxes"]):
                    return True
            except CorruptRecord:
                continue
        return False


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
