"""The place of a 3x3 convolution, which local self-attention can take (paper, section 3.2)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sasa_jax.nn.attention import LocalSelfAttention


def spatial_layer(
    in_features: int,
    features: int,
    *,
    stride: int = 1,
    attention: dict[str, Any] | None,
    kernel_init: nnx.Initializer,
    **types: Any,
) -> nnx.Conv | LocalSelfAttention:
    """A 3x3 convolution with that stride and no bias, or attention; `call_spatial` calls either.

    Args:
        in_features: channels of the input; for attention as many as `features`.
        features: channels of the output.
        stride: 1 or 2.
        attention: keyword arguments of `LocalSelfAttention`, or None for a convolution.
        kernel_init: of the convolution.
        types: dtype, param_dtype, rngs.

    Raises:
        ValueError: attention that would have to change the number of channels.
    """
    if attention is None:
        return nnx.Conv(
            in_features,
            features,
            (3, 3),
            strides=stride,
            padding=1,
            use_bias=False,
            kernel_init=kernel_init,
            **types,
        )
    if in_features != features:
        raise ValueError(
            f"attention keeps the number of channels and cannot make {features} of {in_features}"
        )
    return LocalSelfAttention(features, **attention, **types)


def call_spatial(
    layer: nnx.Conv | LocalSelfAttention,
    x: jax.Array,
    *,
    stride: int = 1,
    residual: bool = False,
    return_weights: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Calls a layer of `spatial_layer`.

    Attention is at the input's resolution and followed at once, where the stride is 2, by the
    average pool; that place follows from the paper's FLOPS.

    Args:
        layer: the layer.
        x: [B, H, W, C].
        stride: 1 or 2, as the layer was built.
        residual: add its input to what attention gives, before the pool.
        return_weights: return the attention's weights.

    Returns:
        [B, H/stride, W/stride, C'], sizes rounded up, and the weights [B, H, W, N, K, K], which are
        None unless asked for and the layer is attention.
    """
    if not isinstance(layer, LocalSelfAttention):
        return layer(x), None
    y, weights = layer(x, return_weights=True) if return_weights else (layer(x), None)
    if residual:
        y = y + x.astype(y.dtype)
    return (halve(y) if stride == 2 else y), weights


def halve(x: jax.Array) -> jax.Array:
    """2x2 average pool with stride 2, [B, H, W, C] -> [B, H/2, W/2, C], sizes rounded up.

    Where a side is odd, the last cells average the pixels that are there.
    """
    _, height, width, _ = x.shape
    if height % 2 or width % 2:
        # The last row stands for its missing neighbour: the mean of a pixel and itself is it.
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # A window's sum: a mean over split axes is several times slower on TPU, and so is its backward
    # pass on CPU.
    exact = x.astype(np.promote_types(x.dtype, jnp.float32))
    cell = (1, 2, 2, 1)
    return (jax.lax.reduce_window(exact, 0.0, jax.lax.add, cell, cell, "VALID") / 4).astype(x.dtype)
