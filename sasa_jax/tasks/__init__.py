"""What can be trained: a network joined with data, a loss and a measure."""

from collections.abc import Mapping
from typing import Any

from sasa_jax.checks import check_choice
from sasa_jax.tasks.classification import Classification
from sasa_jax.tasks.detection import Detection

TASKS = {"classification": Classification, "detection": Detection}

__all__ = ["TASKS", "Classification", "Detection", "open_task"]


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
