"""What the loop needs to know of a task; it never asks which one it runs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

Variables = dict[str, Any]
"""{"params": ..., "batch_stats": ...}, plain nested dicts of arrays."""

Batch = dict[str, Any]
"""Arrays by name; the first axis is the batch."""

Put = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
"""Places this process's part of a batch on the devices, split along the batch."""

Results = dict[str, dict[str, float]]
"""Metrics by name, for each of the evaluated variables."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives.

    Attributes:
        metrics: for each of the evaluated variables.
        files: contents, as JSON, by the name of the file in the run's folder.
    """

    metrics: Results
    files: dict[str, Any] = dataclasses.field(default_factory=dict)


class Batches(Protocol):
    """An endless iterator over training batches that can be put back to where it was."""

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's part of the next batch, of which the step takes what it knows."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands, as JSON: after `set_state` the same batches follow."""
        ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None:
        """Ends its threads."""
        ...


class Task(Protocol):
    """A network, its loss, its data and its measure.

    Attributes:
        train_size: training examples in one epoch.
        class_names: of the network's logits, stored with every checkpoint.
        free_keys: config keys such as "data.dir" that may differ when a run is taken up again.
    """

    train_size: int
    class_names: tuple[str, ...]
    free_keys: tuple[str, ...]

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one whole training batch."""
        ...

    def init(self, key: jax.Array) -> Variables:
        """Random variables; traceable."""
        ...

    def pretrained(self) -> Variables:
        """The part of the variables that a new run does not begin with at random; {} for none."""
        ...

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """The mean loss of a batch; with it the new batch statistics and scalars to log."""
        ...

    def train_batches(self) -> Batches:
        """This process's part of the global batches, endless, with a state to resume from."""
        ...

    def evaluate(self, variables: Mapping[str, Variables], put: Put) -> Callable[[], Evaluation]:
        """Scores every example of the evaluation split once, for each of the named variables.

        Returns when the devices are done. What it returns gives the results, takes as long as the
        host has still to work, and may be called in another thread.
        """
        ...

    def pictures(self, variables: Variables) -> dict[str, np.ndarray]:
        """What people would rather look at, by name: uint8 [H, W, 3]; called on every process."""
        ...

    def headline(self, results: Results) -> str:
        """The run's last line."""
        ...
