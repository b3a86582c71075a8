"""Checkpoints: state, table of its arrays, place in the data, config, in one atomic step.

A thin layer over orbax. A step's folder appears under its final name only when it is complete, so
a run killed at any time finds the newest whole one. One that is damaged all the same (a file cut
short or lost, a bit that flipped: orbax does not look at the arrays' bytes, we do) is named and
put aside, and the newest whole one is taken. The state is stored as one vector, and restored into
an abstract tree with the current shardings: that keeps the types, and lets the number of devices
change.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sasa_jax.training.digest import digest
from sasa_jax.training.packing import differences, nested, pack, place, unpack
from sasa_jax.training.state import TrainState
from sasa_jax.training.workdir import CHECKPOINTS, WorkdirError, check_saved, saved_step

_DAMAGED = "damaged_checkpoints"


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it stand."""


class Restored(NamedTuple):
    """What a checkpoint holds: the step, the state, and where the data iterator stood."""

    step: int
    state: TrainState
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one working directory.

    Args:
        workdir: the run's folder; checkpoints lie in its subfolder "checkpoints".
        keep: the newest so many are kept.
        read_only: neither create the folder nor clean up in it.
    """

    def __init__(self, workdir: Path, *, keep: int = 1, read_only: bool = False):
        self._workdir = workdir
        self._read_only = read_only
        self._failed = False
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            # Left behind by a run killed while it was saving.
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            # Orbax takes absolute paths only.
            (workdir / CHECKPOINTS).absolute(),
            options=options,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "arrays": ocp.JsonCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # With others, closing waits for them: not from the middle of a failure of this one's own.
        if error is None or jax.process_count() == 1:
            # Closing raises again what failed in the background, and was raised already.
            with contextlib.suppress(*([Exception] if self._failed else [])):
                self._manager.close()

    def latest_step(self) -> int:
        """The newest saved step; 0 if there is none."""
        return self._manager.latest_step() or 0

    def steps(self) -> list[int]:
        """The saved steps, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(
        self, step: int, state: TrainState, data: dict[str, Any], config: dict[str, Any]
    ) -> None:
        """Copies the state off the devices and writes it in the background.

        Raises:
            SaveError: this one, or the one before it in the background, cannot be written.
        """
        if step == self.latest_step():
            return
        with self._saving():
            # The state is the same on all devices, so that one process's is all of it.
            vector, table = pack(jax.device_get(state))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave({"bytes": vector}),
                    arrays=ocp.args.JsonSave(table),
                    data=ocp.args.JsonSave(data),
                    config=ocp.args.JsonSave(config),
                ),
            )

    def wait(self) -> None:
        """Returns when everything is on the disk, or raises SaveError."""
        with self._saving():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        # A full disk is an OSError here, a ValueError of TensorStore there.
        except Exception as error:
            self._failed = True
            saved = saved_step(self._workdir)
            stands = f"step {saved} stands" if saved else "there is none yet"
            free = shutil.disk_usage(self._workdir).free / 2**20
            raise SaveError(
                f"a checkpoint could not be written under {self._workdir}, where {free:,.0f} MiB "
                f"are free: {_one_line(error)}. Of the checkpoints before it {stands}; with room "
                "on the disk the same command goes on from there"
            ) from error

    def restore_newest(
        self, abstract: TrainState, check_config: Callable[[dict[str, Any]], None]
    ) -> Restored | None:
        """The newest whole checkpoint; None if there is none at all.

        What is wrong with newer ones is said on stderr; unless `read_only` they are moved to
        "damaged_checkpoints", so that their steps can be saved again.

        Args:
            abstract: shapes, dtypes and shardings to restore into.
            check_config: gets the config that a checkpoint was saved with, and raises WorkdirError
                if it is another run's.

        Raises:
            WorkdirError: from `check_config`; or a state has other arrays; or there are
                checkpoints, and all are damaged.
        """
        steps = self.steps()
        for step in steps:
            try:
                check_config(self.config(step))
                restored = Restored(step, *self._restore(step, abstract))
            except WorkdirError:
                raise
            # Orbax, TensorStore and the JSON parser each have errors of their own.
            except Exception as error:
                _say(f"checkpoint of step {step} is damaged: {_one_line(error)}")
                continue
            if step != steps[0]:
                _say(
                    f"going on from step {step}, the newest whole checkpoint: the work up to step "
                    f"{steps[0]} is lost and will be done again"
                )
                self._put_aside([damaged for damaged in steps if damaged > step])
            return restored
        if steps:
            raise WorkdirError(
                f"all checkpoints under {self._workdir} are damaged (steps "
                f"{', '.join(map(str, steps))}): give another --workdir to begin anew"
            )
        return None

    def _put_aside(self, steps: Iterable[int]) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            for step in steps:
                target = self._workdir / _DAMAGED / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                shutil.move(self._workdir / CHECKPOINTS / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.reload()

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        arrays, data = self._load(step)
        if changes := differences(arrays, abstract):
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise WorkdirError(
                f"{self._workdir} holds the state of another network: {'; '.join(changes[:3])}"
                f"{more}. Use the code that the run began with, or another --workdir"
            )
        return place(arrays, abstract), data

    def _load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays by path, checked, and where the data iterator stood."""
        numpy_leaf = ocp.RestoreArgs(restore_type=np.ndarray)
        saved = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(restore_args={"bytes": numpy_leaf}),
                arrays=ocp.args.JsonRestore(),
                data=ocp.args.JsonRestore(),
            ),
        )
        return unpack(saved["state"]["bytes"], saved["arrays"]), saved["data"]

    def config(self, step: int) -> dict[str, Any]:
        """The config that a step was saved with."""
        args = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["config"]

    def arrays(self, step: int) -> dict[str, Any]:
        """The state's arrays as NumPy's in nested dicts: needs no network to build.

        Raises ValueError, or an error of orbax's, if they are damaged.
        """
        return nested(self._load(step)[0])


def open_saved(workdir: Path) -> Checkpoints:
    """The checkpoints under `workdir`, to read; raises WorkdirError if there is none."""
    check_saved(workdir)
    return Checkpoints(workdir, read_only=True)


def saved_digest(workdir: Path) -> str:
    """The digest of the newest state under `workdir`; needs neither its config nor its data.

    Raises:
        WorkdirError: there is no checkpoint.
    """
    with open_saved(workdir) as checkpoints:
        return digest(checkpoints.arrays(checkpoints.latest_step()))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr)
