"""Local self-attention over pixels with a learned relative embedding.

api: the public functions (checks, choice of implementation, several devices).
definition: the paper's equation. rows, dense: fast forms for any platform. tpu_lanes, tpu_matrix:
TPU kernels. contract: what an implementation is.
registry: all of them, in order of preference. workloads: the shapes that ResNet-50 asks for.
"""

from sasa_jax.ops.local_attention.api import (
    local_attention,
    local_attention_packed,
    local_attention_weights,
    reads_packed,
)

__all__ = [
    "local_attention",
    "local_attention_packed",
    "local_attention_weights",
    "reads_packed",
]
