"""A trained network, ready to use: `load`, and the predictors that it returns."""

from sasa_jax.prediction.classification import ClassificationPredictor, Classified
from sasa_jax.prediction.detection import Detected, DetectionPredictor
from sasa_jax.prediction.loading import LoadError, load, make_predictor
from sasa_jax.prediction.predictor import ImageError, Predictor

__all__ = [
    "ClassificationPredictor",
    "Classified",
    "Detected",
    "DetectionPredictor",
    "ImageError",
    "LoadError",
    "Predictor",
    "load",
    "make_predictor",
]
