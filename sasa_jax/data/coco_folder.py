"""A folder of images with an instances.json in COCO's format, read without TFDS.

    data_dir/train/instances.json   {"images": [...], "annotations": [...], "categories": [...]}
    data_dir/train/<file_name>      or data_dir/train/images/<file_name>
    data_dir/validation/...

    images:       id, file_name, height, width
    annotations:  image_id, category_id, bbox [left, top, width, height] in pixels from 0, and
                  optionally area (the box's if absent) and iscrowd (0 if absent)
    categories:   id, name; classes are numbered in the order of the ids

Other keys are ignored. Everything but the images' content is checked when the folder is opened.

Bad input that raises a DatasetError, because something is broken that nobody can guess: a missing
file, one that is not JSON or lacks a key, no image or no usable box at all, an id that is given to
two images or two categories, an annotation of an unknown image or category, a bbox or an area that
is not made of finite numbers, an image file that is missing. An image file that is no image, or of
another size than stated (as it happens where a program obeyed EXIF's rotation), is found when it is
read: that example is a CorruptRecord.

Bad boxes that are put right and counted in `skipped`, because public data sets have a few: without
area, or all outside their image (left out); partly outside by more than a pixel (cut at the border;
rounding, up to a pixel, is cut without being counted). They are absent, or cut, in the ground truth
too, as no detection could meet them. Images without boxes are normal.
"""

import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sasa_jax.checks import nearest
from sasa_jax.data.catalog import COCO_FOLDER, DatasetError
from sasa_jax.data.corrupt import CorruptRecord
from sasa_jax.data.detection_split import Category, DetectionSplit, stored_size

FILE = "instances.json"


class CocoFolder(DetectionSplit):
    """One split of such a folder; examples are in the order of the file's images.

    Args:
      data_dir: the folder that holds the splits.
      split: name of the subfolder.

    Raises:
      DatasetError: see the module.
    """

    def __init__(self, data_dir: str | os.PathLike[str] | None, split: str):
        self._file = _find(data_dir, split)
        content = _load(self._file)
        categories = sorted(
            Category(self._integer(entry, "categories", "id"), str(entry["name"]))
            for entry in self._entries(content, "categories", "id", "name")
        )
        self._check_unique("categories", (category.id for category in categories))
        super().__init__(COCO_FOLDER, split, tuple(categories), self._file.parent)
        self._images = [
            {key: self._integer(entry, "images", key) for key in ("id", "height", "width")}
            | {"file_name": str(entry["file_name"])}
            for entry in self._entries(content, "images", "id", "file_name", "height", "width")
        ]
        self._check_unique("images", (image["id"] for image in self._images))
        self._paths = self._find_images()
        self._read_annotations(content)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def skipped(self) -> Counter[str]:
        return self._skipped

    def _annotations(self, index: int) -> dict[str, Any]:
        image = self._images[index]
        rows = slice(self._starts[index], self._starts[index + 1])
        return {
            "boxes": self._boxes[rows],
            "classes": self._classes[rows],
            "crowd": self._crowd[rows],
            "area": self._area[rows],
            "image_id": image["id"],
            "file_name": image["file_name"],
            "height": image["height"],
            "width": image["width"],
            "index": index,
        }

    def _example(self, index: int) -> dict[str, Any]:
        example = self._annotations(index)
        file, content = example["file_name"], self._paths[index].read_bytes()
        height, width = stored_size(content, file)
        if (height, width) != (example["height"], example["width"]):
            raise CorruptRecord(
                f"it is {height} x {width} pixels (height x width), and {FILE} says "
                f"{example['height']} x {example['width']}: boxes would not fit. If it is rotated "
                "by its EXIF tag, store it rotated",
                file,
            )
        return {"image": content, **example}

    def _read_annotations(self, content: dict[str, Any]) -> None:
        """Check all annotations and keep them in arrays, image by image in the file's order."""
        image_of = {image["id"]: i for i, image in enumerate(self._images)}
        class_of = {category.id: i for i, category in enumerate(self.categories)}
        entries = self._entries(content, "annotations", "image_id", "category_id", "bbox")
        images = self._look_up(entries, "image_id", image_of, "images")
        classes = self._look_up(entries, "category_id", class_of, "categories")
        crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in entries], np.bool_)
        xywh = self._numbers("bbox", [entry["bbox"] for entry in entries], (4,))

        sizes = np.array([[image["height"], image["width"]] for image in self._images])[images]
        begin, end = xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, :1:-1]
        boxes = np.concatenate([begin.clip(0), np.minimum(end, sizes)], axis=1)
        box_area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).tolist()
        area = [entry.get("area", own) for entry, own in zip(entries, box_area, strict=True)]
        area = self._numbers("area", area, ())

        no_area = (end <= begin).any(axis=1)
        outside = ((begin >= sizes) | (end <= 0)).any(axis=1) & ~no_area
        kept = ~(no_area | outside)
        cut = ((begin < -1) | (end > sizes + 1)).any(axis=1) & kept
        counts = {
            "boxes without area left out": int(no_area.sum()),
            "boxes outside their image left out": int(outside.sum()),
            "boxes cut at the border of their image": int(cut.sum()),
        }
        self._skipped = Counter({reason: number for reason, number in counts.items() if number})
        if not kept.any():
            raise DatasetError(
                f"{self._file} holds no usable box in {len(entries)} annotations: nothing to train "
                f"on or to score. {dict(self._skipped) or ''}".rstrip()
            )
        order = np.flatnonzero(kept)[np.argsort(images[kept], kind="stable")]
        self._boxes = boxes[order].astype(np.float32)
        self._classes = classes[order].astype(np.int32)
        self._crowd, self._area = crowd[order], area[order]
        self._starts = np.searchsorted(images[order], np.arange(len(self._images) + 1))

    def _entries(self, content: dict[str, Any], part: str, *keys: str) -> list[dict[str, Any]]:
        """A non-empty list of the file, each entry with all `keys`."""
        entries = content.get(part)
        if not isinstance(entries, list) or not entries:
            raise DatasetError(
                f"{self._file} holds no {part}; expected COCO's format, a list {part!r} whose "
                f"entries have {', '.join(keys)}."
            )
        for i, entry in enumerate(entries):
            missing = [k for k in keys if k not in entry] if isinstance(entry, dict) else keys
            if missing:
                raise DatasetError(f"{self._file}: {part}[{i}] lacks {', '.join(missing)}.")
        return entries

    def _integer(self, entry: dict[str, Any], part: str, key: str) -> int:
        least = 1 if key in ("height", "width") else -(2**63)
        # bool is an int to Python.
        if type(entry[key]) is not int or entry[key] < least:
            raise DatasetError(
                f"{self._file}: {key} in {part} is {entry[key]!r}; expected an integer"
                + (", at least 1." if least == 1 else ".")
            )
        return entry[key]

    def _numbers(self, key: str, values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
        """float64 [n, *shape] of what the annotations say under `key`."""
        numbers = _finite(values, (len(values), *shape))
        if numbers is None:
            i = next(i for i, value in enumerate(values) if _finite(value, shape) is None)
            raise DatasetError(
                f"{self._file}: {key} of annotations[{i}] is {values[i]!r}; expected "
                f"{'4 numbers' if shape else 'a number'}."
            )
        return numbers

    def _look_up(
        self, entries: list[dict[str, Any]], key: str, places: dict[int, int], part: str
    ) -> np.ndarray:
        """Places int64 [n] of the ids that the annotations refer to."""
        ids = [entry[key] for entry in entries]
        found = [places.get(i) if type(i) is int else None for i in ids]
        if None in found:
            i = found.index(None)
            raise DatasetError(
                f"{self._file}: annotations[{i}] has the {key} {ids[i]!r}, which is none of the "
                f"{part}; {found.count(None):,} of {len(found):,} have such a {key}."
            )
        return np.array(found, np.int64)

    def _check_unique(self, part: str, ids: Iterable[Hashable]) -> None:
        twice = [i for i, number in Counter(ids).items() if number > 1]
        if twice:
            raise DatasetError(
                f"{self._file}: {len(twice)} ids stand for several {part}, the first is {twice[0]}."
            )

    def _find_images(self) -> list[Path]:
        folders = (self._file.parent, self._file.parent / "images")
        paths, missing = [], []
        for image in self._images:
            candidates = [folder / image["file_name"] for folder in folders]
            path = next((path for path in candidates if path.is_file()), None)
            (missing if path is None else paths).append(path or candidates[0])
        if missing:
            raise DatasetError(
                f"{len(missing):,} of {len(self._images):,} images of {self._file} are missing; "
                f"the first is {missing[0]}, looked for also in {folders[1].name}/."
            )
        return paths


def _find(data_dir: str | os.PathLike[str] | None, split: str) -> Path:
    """The split's file."""
    if data_dir is None or not str(data_dir):
        raise DatasetError(
            f"{COCO_FOLDER} needs data_dir, the folder that holds the splits, as in "
            f"data_dir/{split}/{FILE}."
        )
    root = Path(data_dir).expanduser().absolute()
    file = root / split / FILE
    if not file.is_file():
        there = sorted(path.parent.name for path in root.glob(f"*/{FILE}"))
        raise DatasetError(
            f"{file} does not exist{nearest(split, there)}; "
            + (f"splits of {root} are {', '.join(there)}." if there else f"{root} has no split.")
        )
    return file


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{file} holds a {type(content).__name__}; expected COCO's format, an object with "
            "images, annotations and categories."
        )
    return content


def _finite(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Finite numbers of this shape as float64, or None if `value` is anything else."""
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == shape and np.isfinite(numbers).all() else None
