"""Stand-alone self-attention vision models in JAX."""

from sasa_jax.models import create_model, create_retinanet, list_models
from sasa_jax.ops.local_attention import local_attention, local_attention_weights

__all__ = [
    "create_model",
    "create_retinanet",
    "list_models",
    "local_attention",
    "local_attention_weights",
]
__version__ = "0.1.0"
