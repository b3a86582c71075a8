"""A folder of images with a subfolder for each class, read without TFDS.

    data_dir/train/<class>/*.jpg
    data_dir/validation/<class>/*.jpg

Classes are numbered in the order of their names; a class's images are found at any depth in its
folder, by their suffix, in the order of their paths. Hidden files and folders are ignored, and so
are files of other suffixes. A split without a class, a class without an image, and a split that is
not there raise a DatasetError when the folder is opened; an image file that is no image is found
when it is decoded, and is a CorruptRecord.
"""

import os
from pathlib import Path

from sasa_jax.checks import nearest
from sasa_jax.data.catalog import IMAGE_FOLDER, DatasetError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as an image where a whole folder is meant."""


class ImageFolder:
    """One split of such a folder; examples and attributes as those of `sources.Split`.

    Args:
      data_dir: the folder that holds the splits.
      split: name of the subfolder.

    Raises:
      DatasetError: see the module.
    """

    def __init__(self, data_dir: str | os.PathLike[str] | None, split: str):
        self.name = IMAGE_FOLDER
        self.split = split
        self.data_dir = _find(data_dir, split)
        found = {path.name: _images(path) for path in _folders(self.data_dir)}
        if not found:
            raise DatasetError(
                f"{self.data_dir} has no subfolder; expected one for each class, with its images."
            )
        empty = [name for name, paths in found.items() if not paths]
        if empty:
            raise DatasetError(
                f"{len(empty)} of {len(found)} classes in {self.data_dir} have no image "
                f"({', '.join(SUFFIXES)}); the first is {empty[0]!r}."
            )
        self.class_names: tuple[str, ...] = tuple(found)
        self.num_classes = len(found)
        self._paths = [path for paths in found.values() for path in paths]
        self._labels = [label for label, paths in enumerate(found.values()) for _ in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, bytes | int | str]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; {self!r} has the examples 0 to {len(self) - 1}.")
        path = self._paths[index]
        return {
            "image": path.read_bytes(),
            "label": self._labels[index],
            "index": int(index),
            "file_name": str(path.relative_to(self.data_dir)),
        }

    def __repr__(self) -> str:
        return f"ImageFolder({self.description})"

    @property
    def description(self) -> str:
        """One line for the first screen of a run."""
        return (
            f"{self.name} {self.split}: {len(self):,} images, {self.num_classes:,} classes, "
            f"{self.data_dir}"
        )


def _find(data_dir: str | os.PathLike[str] | None, split: str) -> Path:
    """The split's folder."""
    if data_dir is None or not str(data_dir):
        raise DatasetError(
            f"{IMAGE_FOLDER} needs data_dir, the folder that holds the splits, as in "
            f"data_dir/{split}/CLASS/IMAGE."
        )
    root = Path(data_dir).expanduser().absolute()
    there = [path.name for path in _folders(root)] if root.is_dir() else []
    if split not in there:
        raise DatasetError(
            f"{root / split} does not exist{nearest(split, there)}; "
            + (f"splits of {root} are {', '.join(there)}" if there else f"{root} has no split")
            + ". A split is a whole folder: slices such as 'train[:100]' are TFDS's."
        )
    return root / split


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
