"""A task that trains in milliseconds: softmax regression on points, with a running mean.

Run as a script it is a training process that a test can kill:
    python -m tests.training.toy WORKDIR TOTAL_STEPS SLEEP_SECONDS [HANG_SECONDS]
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.training import Evaluation, Interrupted, TrainState, digest, make_plan, train

CONFIG = {
    "seed": 3,
    "batch_size": 8,
    "accumulation_steps": 1,
    "total_epochs": 4.0,
    "total_steps": None,
    "warmup_epochs": 1.0,
    "learning_rate": 0.1,
    "reference_batch_size": None,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-2,
    "weight_decay_on": "kernels",
    "clip_norm": 1.0,
    "max_skipped_steps": 3,
    "average_decay": 0.99,
    "checkpoint_every": 4,
    "keep_checkpoints": 2,
    "eval_every": 8,
    "log_every": 3,
    "hang_seconds": 0.0,
    "profile": (0, 0),
    "wandb": None,
    "data": {"dir": "here"},
}
TRAIN_SIZE, FEATURES, CLASSES = 40, 5, 3


def points(indices: np.ndarray, stream: int) -> dict[str, np.ndarray]:
    """Points of three classes, a function of their index alone."""
    labels = indices % CLASSES
    noise = np.stack([np.random.default_rng((stream, i)).normal(size=FEATURES) for i in indices])
    return {
        "x": (noise + 2.0 * np.eye(CLASSES, FEATURES)[labels]).astype(np.float32),
        "label": labels.astype(np.int32),
    }


class ToyBatches:
    """Batch k holds the points k * batch_size, ... modulo the train size."""

    def __init__(self, batch_size: int, sleep: float):
        self.batch_size, self.sleep, self.position, self.closed = batch_size, sleep, 0, False
        self.poisoned: set[int] = set()  # steps, from 1, whose points hold a NaN

    def __next__(self) -> dict[str, np.ndarray]:
        time.sleep(self.sleep)
        indices = np.arange(self.position, self.position + self.batch_size) % TRAIN_SIZE
        self.position += self.batch_size
        batch = points(indices, 0)
        if self.position // self.batch_size in self.poisoned:
            batch["x"][0, 0] = np.nan
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def close(self) -> None:
        self.closed = True


class ToyTask:
    """Fulfils sasa_jax.training.Task."""

    train_size = TRAIN_SIZE
    class_names = ("a", "b", "c")
    free_keys = ("log_every", "profile", "wandb", "data.dir")

    def __init__(
        self,
        batch_size: int = 8,
        *,
        noise: float = 0.1,
        sleep: float = 0.0,
        on_evaluate: Callable[[int], None] = lambda count: None,
    ):
        self.batch_size, self.noise, self.sleep = batch_size, noise, sleep
        self.on_evaluate = on_evaluate
        self.evaluations = 0
        self.batches: ToyBatches | None = None
        self.poisoned: set[int] = set()

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "x": jax.ShapeDtypeStruct((self.batch_size, FEATURES), jnp.float32),
            "label": jax.ShapeDtypeStruct((self.batch_size,), jnp.int32),
        }

    def init(self, key: jax.Array) -> dict[str, Any]:
        return {
            "params": {
                "layer": {
                    "kernel": jax.random.normal(key, (FEATURES, CLASSES)),
                    "bias": jnp.zeros((CLASSES,)),
                }
            },
            "batch_stats": {"mean": jnp.zeros((FEATURES,))},
        }

    def loss(self, variables: Any, batch: Any, key: jax.Array) -> Any:
        layer = variables["params"]["layer"]
        # Noise, so that a lost random key would show.
        x = batch["x"] + self.noise * jax.random.normal(key, (FEATURES,))[None, :]
        logits = x @ layer["kernel"] + layer["bias"][None, :]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)
        mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * batch["x"].mean(axis=0)
        return -picked.mean(), ({"mean": mean}, {"logit": jnp.abs(logits).mean()})

    def train_batches(self) -> ToyBatches:
        self.batches = ToyBatches(self.batch_size, self.sleep)
        self.batches.poisoned = self.poisoned
        return self.batches

    def pretrained(self) -> dict[str, Any]:
        return {}

    def pictures(self, variables: Any) -> dict[str, np.ndarray]:
        return {}

    def evaluate(self, variables: Any, put: Any) -> Callable[[], Evaluation]:
        self.evaluations += 1
        self.on_evaluate(self.evaluations)
        batch = points(np.arange(16), 1)
        results = {}
        for which, v in variables.items():
            layer = jax.device_get(v["params"]["layer"])
            guess = (batch["x"] @ layer["kernel"] + layer["bias"]).argmax(axis=1)
            results[which] = {"accuracy": float((guess == batch["label"]).mean())}
        return lambda: Evaluation(results)

    def headline(self, results: dict[str, dict[str, float]]) -> str:
        return f"accuracy {results['average']['accuracy']}"


def make_config(**overrides: Any) -> dict[str, Any]:
    """The toy's config, with overrides of keys that it has."""
    assert overrides.keys() <= CONFIG.keys(), overrides
    return CONFIG | overrides


def run(workdir: Path, task: ToyTask | None = None, **overrides: Any) -> TrainState:
    """Trains the toy under `workdir` and returns its last state."""
    config = make_config(**overrides)
    task = task or ToyTask(config["batch_size"])
    return train(task, config, make_plan(config, task.train_size), workdir)[0]


if __name__ == "__main__":
    folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    patience = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    try:
        final = run(
            folder, ToyTask(sleep=pause), total_steps=steps, log_every=1, hang_seconds=patience
        )
    except Interrupted as stop:
        print(stop)
        sys.exit(stop.exit_code)
    print(digest(final))
