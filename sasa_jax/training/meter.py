"""Speed, waiting and the mean of the logged scalars, without stopping the devices."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


class Meter:
    """Collects the scalars of an interval of steps and, one interval later, reads them.

    The scalars are device arrays that may not be computed yet: reading them late means that the
    loop never waits for the step it has just sent off.

    Args:
        batch_size: images of a step, over all devices.
        devices: their number.
        start_step, total_steps: for the time left.
    """

    def __init__(self, *, batch_size: int, devices: int, start_step: int, total_steps: int):
        self._batch_size = batch_size
        self._devices = devices
        self._start_step = start_step
        self._total_steps = total_steps
        self._scalars: list[dict[str, jax.Array]] = []
        self._pending: tuple[dict[str, Any], list[dict[str, jax.Array]]] | None = None
        self._waited = self._paused = 0.0
        self._begin = self._interval = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around fetching a batch."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Around saving and evaluating, which do not count as speed."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def add(self, scalars: dict[str, jax.Array]) -> None:
        """The scalars of one step."""
        self._scalars.append(scalars)

    def cut(self, step: int) -> dict[str, Any] | None:
        """Ends an interval after `step`; returns the record of the one before it, if any."""
        record = self.read()
        now = time.perf_counter()
        seconds = max(now - self._interval - self._paused, 1e-9)
        speed = len(self._scalars) * self._batch_size / seconds
        done = step - self._start_step
        timing = {
            "kind": "train",
            "step": step,
            "total_steps": self._total_steps,
            "images_per_second": speed,
            "images_per_second_per_chip": speed / self._devices,
            "data_wait_share": min(self._waited / seconds, 1.0),
            "seconds_left": (self._total_steps - step) * (now - self._begin) / done,
        }
        self._pending = (timing, self._scalars)
        self._scalars = []
        self._waited = self._paused = 0.0
        self._interval = now
        return record

    def read(self) -> dict[str, Any] | None:
        """The record of the last ended interval, once; waits for its steps if need be."""
        if self._pending is None:
            return None
        timing, scalars = self._pending
        self._pending = None
        host = jax.device_get(scalars)
        # A step that was skipped, being not finite, is no part of a mean.
        applied = [s for s in host if not s.get("skipped_in_a_row")] or host
        means = {name: float(np.mean([s[name] for s in applied])) for name in host[0]}
        # These are of the step that the line names, not of the interval.
        means["learning_rate"] = float(host[-1]["learning_rate"])
        counts = {name: int(host[-1][name]) for name in host[-1] if name.startswith("skipped")}
        return timing | means | counts
