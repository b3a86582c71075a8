"""Names of TFDS data sets, where they lie on disk, and the command that prepares one.

Nothing here imports TensorFlow or touches the network.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds

from sasa_jax.checks import nearest

FILE_FORMAT = "array_record"
# Data sets of this package, which TFDS itself does not know.
OWN_DATASETS = ("digits", "digit_scenes")
# Stands for a folder in COCO's format, which detection reads as it is.
COCO_FOLDER = "coco_folder"
# Stands for a folder with a subfolder of images for each class, which classification reads.
IMAGE_FOLDER = "image_folder"

_NAME = re.compile(
    r"(?P<name>[a-zA-Z]\w*)(/(?P<config>[^:/\s]+))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class DatasetError(ValueError):
    """A data set that is unknown, absent, or not in a form that can be read; says what to do."""


@dataclass(frozen=True)
class DatasetName:
    """A TFDS name: `name`, `name/config`, `name:1.2.3` or `name/config:1.2.3`."""

    name: str
    config: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")

    @classmethod
    def parse(cls, text: str) -> "DatasetName":
        match = _NAME.fullmatch(text)
        if not match:
            raise DatasetError(
                f"name is {text!r}; expected TFDS's form: 'imagenet2012', 'name/config', "
                "'name:1.2.3' or 'name/config:1.2.3'."
            )
        return cls(**match.groupdict())


def resolve_data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """The given folder; if None, TFDS's usual one: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    if data_dir is None or not str(data_dir):
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir).expanduser().absolute()


def known_names() -> list[str]:
    """Names that this package or TFDS can prepare; a folder may hold others, made by hand."""
    return [*OWN_DATASETS, *tfds.list_builders(with_community_datasets=False)]


def check_known(name: str) -> None:
    """Raise DatasetError, with the nearest name, if neither TFDS nor this package has `name`."""
    known = known_names()
    if name == COCO_FOLDER:
        raise DatasetError(
            f"{COCO_FOLDER} is a folder in COCO's format: it needs no preparing, and only "
            "detection reads it."
        )
    if name == IMAGE_FOLDER:
        raise DatasetError(
            f"{IMAGE_FOLDER} is a folder with a subfolder of images for each class: it needs no "
            "preparing, and only classification reads it."
        )
    if name not in known:
        raise DatasetError(
            f"no data set is called {name!r}{nearest(name, [*known, COCO_FOLDER, IMAGE_FOLDER])}; "
            f"known are {', '.join(OWN_DATASETS)} and the {len(known) - len(OWN_DATASETS)} of "
            "TFDS, https://www.tensorflow.org/datasets/catalog"
        )


def manual_instructions(name: str) -> str | None:
    """What TFDS says must be fetched by hand before `name` can be prepared; None if nothing."""
    if name in OWN_DATASETS:
        return None
    text = tfds.builder_cls(name).MANUAL_DOWNLOAD_INSTRUCTIONS
    return " ".join(text.split()) if text else None


def prepare_command(name: DatasetName, data_dir: Path) -> str:
    """The shell command that prepares a known data set under `data_dir`."""
    manual = " --manual_dir M" if manual_instructions(name.name) else ""
    return f"python -m sasa_jax.data.prepare {name} --data_dir {data_dir}{manual}"


def find_prepared(name: DatasetName, data_dir: Path) -> Path | None:
    """The folder of the newest prepared version, in whatever file format; None if there is none.

    Raises DatasetError if `name` has no config and several configs are prepared.
    """
    root = data_dir / name.name
    if name.config:
        return _newest_version(root / name.config, name.version)
    found = _newest_version(root, name.version)
    if found or not root.is_dir():
        return found
    configs = {
        folder.name: version
        for folder in sorted(root.iterdir())
        if folder.is_dir() and (version := _newest_version(folder, name.version))
    }
    if len(configs) > 1:
        raise DatasetError(
            f"{name} is prepared in several configs under {root}: {', '.join(configs)}. "
            f"Name one, as in '{name.name}/{next(iter(configs))}'."
        )
    return next(iter(configs.values()), None)


def _newest_version(folder: Path, version: str | None) -> Path | None:
    if not folder.is_dir():
        return None
    # TFDS writes into `<version>.incomplete...` folders and renames: the pattern leaves them out.
    versions = [
        path
        for path in folder.iterdir()
        if _VERSION.fullmatch(path.name)
        and (version is None or path.name == version)
        and (path / "dataset_info.json").is_file()
    ]
    return max(versions, key=lambda p: tuple(map(int, p.name.split("."))), default=None)
