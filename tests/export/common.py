"""Predictors with random weights, which need no training, and what they should give."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sasa_jax.export.exporting import FORMATS
from sasa_jax.prediction import Predictor, make_predictor
from sasa_jax.tasks import normalise, task_without_data
from tests.parity.common import random_variables
from tests.training.small_digits import small_digits
from tests.training.small_scenes import small_scenes

# A group of attention and one of convolutions, on 32x32 digits.
DIGITS = {"model__blocks": (1, 1), "model__attention_groups": (1,)}


def random_predictor(config: dict[str, Any]) -> Predictor:
    """With activations and logits of order one, and the ten digits as classes."""
    class_names = tuple("0123456789")
    task = task_without_data(config, class_names)
    variables = jax.tree.map(np.float32, random_variables(task.shapes, seed=1))
    return make_predictor(config | {"class_names": class_names}, variables, step=7, source="random")


def digits(data_dir: Path, **overrides: Any) -> Predictor:
    """A classifier."""
    return random_predictor(small_digits(data_dir, **DIGITS | overrides))


def scenes(data_dir: Path) -> Predictor:
    """A detector."""
    return random_predictor(small_scenes(data_dir))


def noise(predictor: Predictor, number: int) -> np.ndarray:
    """uint8 [number, S, S, 3]."""
    size = predictor.image_size
    return np.random.default_rng(3).integers(0, 256, (number, size, size, 3), np.uint8)


def raw_outputs(predictor: Predictor, images: np.ndarray) -> list[np.ndarray]:
    """Logits, and box codes of a detector."""
    return [np.asarray(x) for x in jax.tree.leaves(predictor.network(normalise(images)))]


def absent(format: str) -> list[str]:
    """The modules that a format needs and that are not here."""
    return [module for module in FORMATS[format].modules if find_spec(module) is None]
