"""Networks by name, and their functional side."""

from sasa_jax.models.functional import Variables, apply, split
from sasa_jax.models.registry import create_model, list_models, model_options
from sasa_jax.models.resnet import ResNet

__all__ = [
    "ResNet",
    "Variables",
    "apply",
    "create_model",
    "list_models",
    "model_options",
    "split",
]
