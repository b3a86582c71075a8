"""Data sets, transforms of images and boxes, and loaders; no TensorFlow and no JAX in here."""

from sasa_jax.data.box_transforms import DetectionEval, DetectionTrain
from sasa_jax.data.catalog import DatasetError
from sasa_jax.data.corrupt import CorruptDataError, CorruptRecord
from sasa_jax.data.detection_sources import open_detection_split
from sasa_jax.data.detection_split import Category, DetectionSplit
from sasa_jax.data.image_folder import ImageFolder
from sasa_jax.data.image_transforms import MEAN_RGB, STD_RGB, make_transform
from sasa_jax.data.loader import EvalLoader, TrainLoader, eval_loader, train_loader
from sasa_jax.data.sources import Split, open_split

__all__ = [
    "MEAN_RGB",
    "STD_RGB",
    "Category",
    "CorruptDataError",
    "CorruptRecord",
    "DatasetError",
    "DetectionEval",
    "DetectionSplit",
    "DetectionTrain",
    "EvalLoader",
    "ImageFolder",
    "Split",
    "TrainLoader",
    "eval_loader",
    "make_transform",
    "open_detection_split",
    "open_split",
    "train_loader",
]
