"""Evaluation beside the training: what the devices must do is waited for, the rest is not."""

import threading
import time
from concurrent.futures import Future

from sasa_jax.training.state import TrainState
from sasa_jax.training.task import Evaluation, Put, Results, Task
from sasa_jax.training.writers import Record, Writers


class Scorer:
    """One evaluation at a time.

    `begin` returns when the devices have scored every example; what is left for the host (COCO's
    metric takes a minute) goes on in a thread while the devices train. `settle` writes its results.

    Args:
        task: what is evaluated.
        put: see `Task.evaluate`.
        writers: get the record and the pictures.
    """

    def __init__(self, task: Task, put: Put, writers: Writers):
        self._task, self._put, self._writers = task, put, writers
        self._pending: tuple[int, Future[tuple[Evaluation, float]]] | None = None

    def begin(self, step: int, state: TrainState) -> None:
        """Scores `state`, and draws the task's pictures of it."""
        start = time.perf_counter()
        finish = self._task.evaluate(state.evaluated, self._put)
        for name, picture in self._task.pictures(state.averages).items():
            self._writers.image(step, name, picture)
        future: Future[tuple[Evaluation, float]] = Future()

        def run() -> None:
            try:
                evaluation = finish()
                # Here too: COCO's result file of 5,000 images takes seconds to write.
                for name, content in evaluation.files.items():
                    self._writers.file(name, content)
                future.set_result((evaluation, time.perf_counter() - start))
            except BaseException as error:  # raised again where the results are asked for
                future.set_exception(error)

        # A daemon, so that a process that is told to stop need not wait for it.
        threading.Thread(target=run, daemon=True).start()
        self._pending = step, future

    def wait(self) -> None:
        """Until the results are there."""
        if self._pending is not None:
            self._pending[1].result()

    def settle(self, *, wait: bool = True) -> Results | None:
        """Writes the results of what was begun, once; None if there are none (yet)."""
        if self._pending is None or not (wait or self._pending[1].done()):
            return None
        (step, future), self._pending = self._pending, None
        evaluation, seconds = future.result()
        self._writers.write(eval_record(step, evaluation.metrics) | {"seconds": seconds})
        return evaluation.metrics


def eval_record(step: int, results: Results) -> Record:
    """The results as one line for the writers."""
    named = {
        f"{which}/{name}": value
        for which, metrics in results.items()
        for name, value in metrics.items()
    }
    return {"kind": "eval", "step": step, **named}
