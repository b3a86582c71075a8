"""What ends a run early: a signal, after saving; steps that are not finite; no progress."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NotFiniteError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite; none was applied."""


def check_finite(scalars: Mapping[str, Any], step: int, most: int, saved: int) -> None:
    """Raises NotFiniteError if the steps up to `step` were skipped `most` times in a row.

    Args:
        scalars: of that step, computed already; empty before the first step.
        step: its number.
        most: `max_skipped_steps` of the config.
        saved: the newest checkpoint, 0 if there is none.
    """
    in_a_row = int(scalars["skipped_in_a_row"]) if scalars else 0
    if in_a_row < most:
        return
    checkpoint = f"the last checkpoint is step {saved}" if saved else "there is no checkpoint yet"
    raise NotFiniteError(
        f"steps {step - in_a_row + 1} to {step} gave no finite loss and gradient (loss "
        f"{float(scalars['loss'])}, gradient norm {float(scalars['gradient_norm'])}, learning rate "
        f"{float(scalars['learning_rate']):g}); none of them was applied, and {checkpoint}. Lower "
        "learning_rate, set clip_norm, or look at the data; max_skipped_steps allows more"
    )


class Interrupted(Exception):
    """The run was stopped by a signal, after saving.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it: 130 for SIGINT (Ctrl-C), 143 for
            SIGTERM.
    """

    def __init__(self, signum: int, step: int):
        self.exit_code = 128 + signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, which is saved; "
            "the same command goes on from there"
        )


class _Abandoned(BaseException):
    """Leaves work that may be dropped; not an Exception, so that no library swallows it."""


class StopGuard:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one ends the process at once.

    A signal to any process stops all of them, at the same step. Only the main thread can hold the
    guard; in another thread it does nothing and the signals keep their usual effect.

    Args:
        agree: from the number of the signal noted here, or 0, to that of any process; all
            processes call it equally often. By default there is one process.
    """

    def __init__(self, agree: Callable[[int], int] = lambda signum: signum):
        self._agree = agree
        self._noted = self._agreed = 0
        self._droppable = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopGuard":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = signum
        self._restore()
        # print() may be what was interrupted, and is not reentrant.
        os.write(2, b"\nstopping: finishing the step and saving (again to stop at once)\n")
        if self._droppable:
            raise _Abandoned

    def stop(self) -> int:
        """The signal for which all processes stop now, 0 for none; called by all of them."""
        self._agreed = self._agreed or self._agree(self._noted)
        return self._agreed

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """Work that a signal may break off: alone, anywhere; with others, where it asks `drop`."""
        self._droppable = jax.process_count() == 1
        try:
            yield
        except _Abandoned:
            pass
        finally:
            self._droppable = False

    def drop(self) -> None:
        """Within droppable work, and called by all processes: leaves it if they are to stop."""
        if self.stop():
            raise _Abandoned


class Watchdog:
    """Ends a process that hangs: JAX waits for another host for ever.

    Without `progress()` for so many seconds, the stacks of all threads go to stderr and the process
    exits with 1, at once: a C thread does it, whatever Python is stuck in.

    Args:
        seconds: 0 is never.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        self.progress()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def progress(self) -> None:
        """Something was done: begin to count anew."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)
