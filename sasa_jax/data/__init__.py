"""TFDS data sets, image transforms and loaders; nothing here imports TensorFlow or JAX."""

from sasa_jax.data.catalog import DatasetError
from sasa_jax.data.image_transforms import MEAN_RGB, STD_RGB, make_transform
from sasa_jax.data.loader import EvalLoader, TrainLoader, eval_loader, train_loader
from sasa_jax.data.sources import Split, open_split

__all__ = [
    "MEAN_RGB",
    "STD_RGB",
    "DatasetError",
    "EvalLoader",
    "Split",
    "TrainLoader",
    "eval_loader",
    "make_transform",
    "open_split",
    "train_loader",
]
