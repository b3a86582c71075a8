"""The splits and transforms that a classification config asks for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sasa_jax.data import DatasetError, Split, make_transform, open_split
from sasa_jax.data.catalog import DatasetName, check_known
from sasa_jax.data.image_transforms import KINDS, Transform


@dataclasses.dataclass(frozen=True)
class AbsentSplit:
    """Stands for a split that is not on this machine, with the size that the config states."""

    name: str
    split: str
    size: int
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.size

    @property
    def description(self) -> str:
        return f"{self.name} {self.split}: {self.size:,} images, {self.num_classes:,} classes"


@dataclasses.dataclass(frozen=True)
class ClassificationData:
    """Training and evaluation split; `missing` says how to get them where they are absent."""

    train: Split | AbsentSplit
    evaluation: Split | AbsentSplit
    missing: str | None = None


def open_data(config: Mapping[str, Any], *, allow_absent: bool = False) -> ClassificationData:
    """Opens the splits of `config["data"]`.

    Args:
        config: the whole config.
        allow_absent: take the sizes that the config states where the data is not here.

    Raises:
        DatasetError: the data set is unknown, or absent (with the command that prepares it).
    """
    data = config["data"]
    try:
        return ClassificationData(
            open_split(data["name"], data["train_split"], data["dir"]),
            open_split(data["name"], data["eval_split"], data["dir"]),
        )
    except DatasetError as error:
        check_known(DatasetName.parse(data["name"]).name)
        stated = data["num_classes"], data["train_size"], data["eval_size"]
        if not allow_absent or None in stated:
            raise
        classes, train_size, eval_size = stated
        return ClassificationData(
            AbsentSplit(data["name"], data["train_split"], train_size, classes),
            AbsentSplit(data["name"], data["eval_split"], eval_size, classes),
            missing=str(error),
        )


def transform(config: Mapping[str, Any], *, train: bool) -> Transform:
    """The transform of `config["data"]`; options that belong to another kind are left out."""
    data = config["data"]
    options = dict(data["augmentation"])
    kind = options.pop("kind")
    if kind in KINDS:
        known = {field.name for field in dataclasses.fields(KINDS[kind])}
        options = {k: v for k, v in options.items() if k in known and v is not None}
    return make_transform(kind, data["image_size"], train=train, **options)
