"""The splits that a config asks for, or their stated sizes where the data is absent."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sasa_jax.data import Category, DatasetError
from sasa_jax.data.catalog import DatasetName, known_names


@dataclasses.dataclass(frozen=True)
class AbsentSplit:
    """Stands for a split that is not on this machine, of which size and classes are known.

    Attributes:
        name, split: as the config has them.
        size: number of images.
        class_names: one for each logit of the network; "" where it has no class.
    """

    name: str
    split: str
    size: int
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.size

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The id of a class is the number of its logit, from 1."""
        named = enumerate(self.class_names, start=1)
        return tuple(Category(number, name) for number, name in named if name)

    @property
    def description(self) -> str:
        """One line for the first screen of a run."""
        return f"{self.name} {self.split}: {self.size:,} images, {self.num_classes:,} classes"


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Training and evaluation split; `missing` says how to get them where they are absent."""

    train: Any
    evaluation: Any
    missing: str | None = None


def open_data(
    config: Mapping[str, Any], opener: Callable[..., Any], *, allow_absent: bool = False
) -> TaskData:
    """Opens the splits of `config["data"]`.

    Args:
        config: the whole config.
        opener: (name, split, data_dir) -> split.
        allow_absent: take the sizes that the config states where the data is not here.

    Raises:
        DatasetError: the data set is unknown, or absent (with the command that prepares it).
    """
    data = config["data"]
    wanted = data["train_split"], data["eval_split"]
    try:
        return TaskData(*(opener(data["name"], split, data["dir"]) for split in wanted))
    except DatasetError as error:
        # A name that nobody can prepare is no absent data set: what was raised says what it is.
        known = DatasetName.parse(data["name"]).name in known_names()
        sizes = data["train_size"], data["eval_size"]
        if not (allow_absent and known) or None in (*sizes, data["num_classes"]):
            raise
        absent = (
            AbsentSplit(data["name"], split, size, numbered_classes(data["num_classes"]))
            for split, size in zip(wanted, sizes, strict=True)
        )
        return TaskData(*absent, missing=str(error))


def numbered_classes(number: int) -> tuple[str, ...]:
    """Names for classes whose own are not known: "0", "1", ..."""
    return tuple(map(str, range(number)))
