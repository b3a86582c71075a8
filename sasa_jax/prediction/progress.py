"""How far a long prediction is, on stderr."""

import sys
import time
from typing import TextIO


class Progress:
    """A line with the speed and the time left, once it has run for a while.

    The clock starts with the first image done: what it took to compile would spoil the speed.

    On a terminal the line has a bar and is rewritten; in a log there is a new one now and then.

    Args:
        total: images.
        stream: stderr.
    """

    def __init__(self, total: int, stream: TextIO | None = None):
        self._total = total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._every = 0.5 if self._terminal else 30.0
        self._begin: float | None = None
        self._before = 0  # images done when the clock started
        self._next = 0.0
        self._shown = False

    def show(self, done: int) -> None:
        """To be called after each image."""
        now = time.monotonic()
        if self._begin is None:
            self._begin, self._before = now, done
            self._next = now + max(self._every, 2.0)
        if now < self._next:
            return
        self._next = now + self._every
        speed = (done - self._before) / (now - self._begin)
        left = (self._total - done) / speed if speed else 0.0
        bar = f"[{'#' * (20 * done // self._total):20}]  " * self._terminal
        self._write(
            f"{bar}{done:,} of {self._total:,} images  {speed:.1f} images/s  left {clock(left)}"
        )

    def say(self, line: str) -> None:
        """Another line, that stays."""
        self._clear()
        print(line, file=self._stream)

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._shown = False

    def _write(self, line: str) -> None:
        if self._terminal:
            self._clear()
            self._stream.write(line)
            self._stream.flush()
            self._shown = True
        else:
            print(line, file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """`0:01:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
