"""What can be trained: a network joined with data, a loss and a measure."""

from collections.abc import Mapping, Sequence
from typing import Any

from sasa_jax.checks import check_choice
from sasa_jax.tasks.classification import Classification
from sasa_jax.tasks.detection import Detection
from sasa_jax.tasks.image_task import normalise
from sasa_jax.tasks.overview import Task, dry_run, first_screen
from sasa_jax.tasks.splits import AbsentSplit, TaskData, numbered_classes

TASKS = {"classification": Classification, "detection": Detection}

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Task",
    "dry_run",
    "first_screen",
    "normalise",
    "numbered_classes",
    "open_task",
    "task_without_data",
]


def open_task(
    config: Mapping[str, Any], *, allow_absent: bool = False
) -> Classification | Detection:
    """The task that `config["task"]` names, with its data.

    Args:
        config: plain nested dicts, see configs/common.py.
        allow_absent: take the sizes that the config states where the data is not here.

    Raises:
        ValueError, TypeError: something in the config that is not allowed; the message says what.
    """
    check_choice("task", config["task"], TASKS)
    return TASKS[config["task"]].open(config, allow_absent=allow_absent)


def task_without_data(
    config: Mapping[str, Any], class_names: Sequence[str]
) -> Classification | Detection:
    """The task of a run that has ended, to use its network: all but the data.

    Args:
        config: as stored with the checkpoint.
        class_names: one for each logit, "" where no class uses it, as `ImageTask.class_names`.

    Raises:
        ValueError, TypeError: as `open_task`.
    """
    check_choice("task", config["task"], TASKS)
    data = config["data"]
    train, evaluation = (
        AbsentSplit(data["name"], data[split], 0, tuple(class_names))
        for split in ("train_split", "eval_split")
    )
    return TASKS[config["task"]](
        # What the first weights came from is in the trained ones.
        {**config, "backbone_from": None, "init_from": None},
        TaskData(train, evaluation),
    )
