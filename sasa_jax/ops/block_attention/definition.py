"""Block attention as it is written: every pixel over the 16 pixels of its own aligned 4x4 block."""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 4  # pixels on a side


def to_blocks(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/4, W/4, 16, C]: aligned blocks, their pixels row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK, channels)
    return x.swapaxes(2, 3).reshape(batch, height // BLOCK, width // BLOCK, BLOCK**2, channels)


def attention_weights(
    blocks: jax.Array, content: jax.Array, relative: jax.Array | None
) -> jax.Array:
    """The softmax over key pixels j of x_i content x_j + x_i . relative_ij.

    Args:
        blocks: [B, P, Q, 16, 3].
        content: [N, 3, 3], of the query's channel and the key's.
        relative: [N, 3, 16, 16], of the query's channel, the query and the key, or None.

    Returns:
        [B, P, Q, N, 16, 16] in the blocks' dtype, computed in float32 (float64 for float64).
    """
    accumulator = np.promote_types(blocks.dtype, jnp.float32)
    content_query = jnp.einsum("bpqic,nce->bpqnie", blocks, content.astype(blocks.dtype))
    logits = jnp.einsum(
        "bpqnie,bpqje->bpqnij", content_query, blocks, preferred_element_type=accumulator
    )
    if relative is not None:
        logits = logits + jnp.einsum(
            "bpqic,ncij->bpqnij",
            blocks,
            relative.astype(blocks.dtype),
            preferred_element_type=accumulator,
        )
    return jax.nn.softmax(logits, axis=-1).astype(blocks.dtype)
