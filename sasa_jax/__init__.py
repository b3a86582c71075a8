"""Stand-alone self-attention vision models in JAX."""

from typing import TYPE_CHECKING, Any

from sasa_jax.models import create_model, create_retinanet, list_models
from sasa_jax.ops.local_attention import local_attention, local_attention_weights

if TYPE_CHECKING:
    from sasa_jax.prediction import load

__all__ = [
    "create_model",
    "create_retinanet",
    "list_models",
    "load",
    "local_attention",
    "local_attention_weights",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Data sets, checkpoints and figures take seconds to import: not to build a layer.
    if name == "load":
        from sasa_jax.prediction import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
