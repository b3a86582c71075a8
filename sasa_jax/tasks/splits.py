"""The splits that a config asks for, or their stated sizes where the data is absent."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sasa_jax.data import Category, DatasetError
from sasa_jax.data.catalog import DatasetName, known_names


@dataclasses.dataclass(frozen=True)
class AbsentSplit:
    """Stands for a split that is not on this machine, with the size that the config states."""

    name: str
    split: str
    size: int
    num_classes: int

    def __len__(self) -> int:
        return self.size

    @property
    def categories(self) -> tuple[Category, ...]:
        """As many as there are classes; their ids and names are not known without the data."""
        return tuple(Category(number, str(number)) for number in range(1, self.num_classes + 1))

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
            AbsentSplit(data["name"], split, size, data["num_classes"])
            for split, size in zip(wanted, sizes, strict=True)
        )
        return TaskData(*absent, missing=str(error))
