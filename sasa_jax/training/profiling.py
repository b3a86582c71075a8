"""A trace of some steps, for xprof, TensorBoard's profile plugin and ui.perfetto.dev."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import jax


class Profiler:
    """Traces the steps from the first to the last of `steps`; every process its own devices.

    Args:
        folder: gets plugins/profile/<time>/: xplane.pb and perfetto_trace.json.gz.
        steps: (first, last), counted from 1; (0, 0) is none.
    """

    def __init__(self, folder: Path, steps: Sequence[int]):
        self._folder = folder
        self._first, self._last = steps
        self._tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, number: int) -> AbstractContextManager:
        """Around sending a step to the devices."""
        if not self._first <= number <= self._last:
            return contextlib.nullcontext()
        if not self._tracing:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, results: object) -> None:
        """After a step was sent: the last one is waited for."""
        if self._tracing and number >= self._last:
            jax.block_until_ready(results)
            self._stop()
            if jax.process_index() == 0:
                print(f"traced up to step {number}: {self._folder}", flush=True)

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
