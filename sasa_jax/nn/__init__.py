"""The layers of the paper: local self-attention, the two stems, batch normalisation."""

from sasa_jax.nn.attention import LocalSelfAttention
from sasa_jax.nn.batch_norm import BatchNorm
from sasa_jax.nn.position import sinusoidal_position
from sasa_jax.nn.stems import AttentionStem, ConvStem

__all__ = ["AttentionStem", "BatchNorm", "ConvStem", "LocalSelfAttention", "sinusoidal_position"]
