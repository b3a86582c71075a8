"""What happens when a run is asked to stop: finish the step, save, and say so."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    Only the main thread can hold it; in another thread it does nothing and the signals keep their
    usual effect.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._droppable = False
        self._previous: dict[int, object] = {}

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
        self.signum = signum
        self._restore()
        # print() may be what was interrupted, and is not reentrant.
        os.write(2, b"\nstopping: finishing the step and saving (again to stop at once)\n")
        if self._droppable:
            raise _Abandoned

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """Work that a signal may break off in the middle; `signum` then says that it did."""
        self._droppable = True
        try:
            yield
        except _Abandoned:
            pass
        finally:
            self._droppable = False
