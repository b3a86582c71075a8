"""Networks by name, and their functional side."""

from sasa_jax.models.functional import Variables, apply, shape_differences, split
from sasa_jax.models.registry import create_model, list_models, model_options
from sasa_jax.models.resnet import ResNet
from sasa_jax.models.retinanet import RetinaNet, create_retinanet, retinanet_options

__all__ = [
    "ResNet",
    "RetinaNet",
    "Variables",
    "apply",
    "create_model",
    "create_retinanet",
    "list_models",
    "model_options",
    "retinanet_options",
    "shape_differences",
    "split",
]
