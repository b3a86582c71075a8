"""What a run's folder holds, and when it is refused; without orbax, and nothing is written."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

CHECKPOINTS = "checkpoints"  # the subfolder


class WorkdirError(ValueError):
    """The working directory does not fit what is asked of it."""


def saved_step(workdir: Path) -> int:
    """The newest step saved under `workdir`, 0 if there is none; touches nothing."""
    return max(_saved_steps(workdir), default=0)


def _saved_steps(workdir: Path) -> list[int]:
    folder = workdir / CHECKPOINTS
    saved = folder.iterdir() if folder.is_dir() else ()
    return [int(path.name) for path in saved if path.name.isdecimal()]


def check_saved(workdir: Path) -> None:
    """Raises WorkdirError if there is no checkpoint under `workdir`."""
    if not saved_step(workdir):
        raise WorkdirError(f"{workdir} holds no checkpoint: train first, with that --workdir")


def check_same_config(
    workdir: Path, stored: dict[str, Any], current: dict[str, Any], free_keys: Iterable[str]
) -> None:
    """Refuses to go on with a run under another config.

    Args:
        workdir: for the message.
        stored, current: nested dicts; tuples and lists are the same.
        free_keys: dotted keys that may differ.

    Raises:
        WorkdirError: naming the first differences.
    """
    old, new = _flat(stored), _flat(current)
    missing = "(absent)"
    differences = [
        f"{key} was {old.get(key, missing)!r} and is {new.get(key, missing)!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in set(free_keys) and old.get(key, missing) != new.get(key, missing)
    ]
    if not differences:
        return
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    schedule = any("total_" in line for line in differences)
    hint = " (the length shapes the learning rate: a run cannot be extended)" if schedule else ""
    raise WorkdirError(
        f"{workdir} holds a run of another config: {'; '.join(differences[:3])}{more}{hint}. "
        "Give the config of that run, or another --workdir"
    )


def check_space(workdir: Path, state: Any, keep: int) -> None:
    """Refuses to begin a run whose checkpoints will not fit.

    Args:
        workdir: the run's folder.
        state: abstract arrays.
        keep: so many checkpoints are kept, and one more stands while it is written.

    Raises:
        WorkdirError: too little is free.
    """
    one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    wanted = max(keep + 1 - len(_saved_steps(workdir)), 1)
    free = shutil.disk_usage(workdir).free
    if free < wanted * one:
        raise WorkdirError(
            f"--workdir {workdir} has {free / 2**20:,.0f} MiB free, and {wanted} checkpoints of "
            f"{one / 2**20:,.0f} MiB are to come: make room, name another folder, or lower "
            f"keep_checkpoints, {keep}"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
