"""Attention inside the aligned 4x4 blocks of an image: what the attention stem is made of.

definition: the equation. api: the fast form, which keeps a block's best pixel and the moments of
all, in place of all 16. tpu: its operands and its gradient. kernels: what a TPU core does.
"""

from sasa_jax.ops.block_attention.api import Best, best_of_blocks, refuses
from sasa_jax.ops.block_attention.definition import BLOCK, attention_weights, to_blocks

__all__ = ["BLOCK", "Best", "attention_weights", "best_of_blocks", "refuses", "to_blocks"]
