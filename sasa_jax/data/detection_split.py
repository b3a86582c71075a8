"""What every detection split offers: images, boxes in pixels, and its ground truth for COCO's AP.

Boxes are float32 (top, left, bottom, right) in pixels of the stored image, right and bottom
exclusive, always inside the image and never empty; the readers see to it (see detection_sources and
coco_folder for what each does with bad input).
"""

import abc
import io
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sasa_jax.data.catalog import DatasetError
from sasa_jax.data.corrupt import CorruptRecord


class Category(NamedTuple):
    """A class as the annotations call it; `id` is what COCO's files hold."""

    id: int
    name: str


class DetectionSplit(abc.ABC):
    """One split of a detection data set: a random-access sequence of examples.

    `split[i]` is a dict of
      image: the file's JPEG or PNG bytes.
      boxes: float32 [n, 4], see the module; n may be 0.
      classes: int32 [n], places in `categories`.
      crowd: bool [n]; such a box holds many objects, and only evaluation uses it.
      area: float64 [n], of the object's mask where the data has masks; in pixels.
      image_id, file_name, height, width: of the stored image.
      index: i.
    CorruptRecord where it cannot be used; IndexError outside 0 <= i < len(split). Safe to read from
    several threads, and can be pickled.

    Attributes:
      name: the data set, e.g. "coco/2017:1.1.0".
      split: the part, e.g. "train".
      categories: one Category per class, in class order.
      skipped: number of boxes left out or changed, by reason; empty where all were good.
      folder: where the files lie.
    """

    def __init__(self, name: str, split: str, categories: tuple[Category, ...], folder: Any):
        self.name = name
        self.split = split
        self.categories = categories
        self.folder = folder

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def _annotations(self, index: int) -> dict[str, Any]:
        """An example without its image."""

    @abc.abstractmethod
    def _example(self, index: int) -> dict[str, Any]: ...

    @property
    @abc.abstractmethod
    def skipped(self) -> Counter[str]: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; {self!r} has the examples 0 to {len(self) - 1}.")
        return self._example(int(index))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description})"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.categories)

    @property
    def description(self) -> str:
        """One line for the first screen of a run, with what was skipped."""
        skipped = "".join(f", {number:,} {reason}" for reason, number in self.skipped.items())
        return (
            f"{self.name} {self.split}: {len(self):,} images, {self.num_classes:,} classes, "
            f"{self.folder}{skipped}"
        )

    def ground_truth(self, without: Collection[int] = ()) -> dict[str, list[dict[str, Any]]]:
        """All annotations, crowd included, in COCO's instances format, e.g. for pycocotools.

        Image ids, file names, sizes, category ids and areas are the data's own. Annotations are
        numbered anew from 1: pycocotools counts a match with number 0 as none.

        Args:
          without: indices of images to leave out.

        Raises:
          DatasetError: no box at all, or two images with one id.
          CorruptRecord: an image that cannot be used and is not left out.
        """
        images, annotations = [], []
        for i in (i for i in range(len(self)) if i not in without):
            example = self._annotations(i)
            images.append(
                {"id": example["image_id"]}
                | {key: example[key] for key in ("width", "height", "file_name")}
            )
            rows = zip(
                example["boxes"].astype(np.float64).tolist(),
                example["classes"].tolist(),
                example["area"].tolist(),
                example["crowd"].tolist(),
                strict=True,
            )
            for (top, left, bottom, right), place, area, crowd in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": example["image_id"],
                        "category_id": self.categories[place].id,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        if not annotations:
            raise DatasetError(f"{self.name} {self.split} holds no box: nothing to score.")
        if len({image["id"] for image in images}) < len(images):
            raise DatasetError(
                f"{self.name} {self.split} holds an image id twice; COCO's metrics need each once."
            )
        categories = [category._asdict() for category in self.categories]
        return {"images": images, "annotations": annotations, "categories": categories}


def stored_size(image: bytes, file_name: str) -> tuple[int, int]:
    """Height and width as the file's header has them; an EXIF rotation is ignored.

    Raises:
      CorruptRecord: bytes that are no image.
    """
    try:
        with Image.open(io.BytesIO(image)) as header:
            width, height = header.size
    # Nothing but the bytes is read: whatever Pillow says is about them.
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptRecord(f"{len(image)} bytes that are no image", file_name) from error
    return height, width
