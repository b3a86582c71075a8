"""Local attention as the paper writes it (section 3.2, equations 2 and 3).

    y_ij = sum_{(a, b) in N_K(i, j)} softmax_ab(q_ij . k_ab + q_ij . r_{a-i, b-j}) v_ab
    r_{a-i, b-j} = concat(row[a-i], column[b-j])

Nothing is saved here: each pixel's window is copied out, K^2 times the input, and JAX
differentiates the whole. It is the yardstick of the other implementations, and small enough to be
read.

The paper leaves open what happens at the border. "zero" (the default, as in a convolution): slots
outside the image hold key 0 and value 0 and stay in the softmax with the logit q . r. "mask": they
get no probability.
"""

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import Inputs, Options, float32_as_such


@float32_as_such
def definition(options: Options, inputs: Inputs) -> jax.Array:
    """The output y, [B, H, W, N, D] in the value's dtype."""
    weights = attention_weights(options, inputs)
    values = windows(inputs.value.astype(weights.dtype), options.window)
    output = jnp.einsum("bijnrc,bijrcnd->bijnd", weights, values)
    return output.astype(inputs.value.dtype)


@float32_as_such
def attention_weights(options: Options, inputs: Inputs) -> jax.Array:
    """The softmax over each pixel's window, [B, H, W, N, K, K], float32 (float64 for float64).

    The value is not looked at. Entry [..., r, c] belongs to the key at the offset
    (r - K//2, c - K//2) from its query.
    """
    dtype = softmax_dtype(inputs.query.dtype)
    query = inputs.query.astype(dtype)
    batch, height, width, heads, _ = query.shape
    logits = jnp.zeros((batch, height, width, heads, options.window, options.window), dtype)
    if inputs.key is not None:
        keys = windows(inputs.key.astype(dtype), options.window)
        logits += jnp.einsum("bijnd,bijrcnd->bijnrc", query, keys)
    if inputs.row_embedding is not None:
        relative = relative_embedding(inputs, dtype)
        logits += jnp.einsum("bijnd,rcnd->bijnrc", query, relative)
    logits *= options.scale
    if options.boundary == "mask":
        image = jnp.ones((1, height, width, 1, 1), bool)
        inside = windows(image, options.window)[..., 0].transpose(0, 1, 2, 5, 3, 4)
        logits = jnp.where(inside, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=(-2, -1))


def windows(image: jax.Array, window: int) -> jax.Array:
    """Each pixel's window: [B, H, W, N, D] to [B, H, W, K, K, N, D], zero outside the image."""
    height, width = image.shape[1:3]
    reach = window // 2
    padded = jnp.pad(image, ((0, 0), (reach, reach), (reach, reach), (0, 0), (0, 0)))
    rows = jnp.stack([padded[:, r : r + height] for r in range(window)], axis=3)
    return jnp.stack([rows[:, :, c : c + width] for c in range(window)], axis=4)


def relative_embedding(inputs: Inputs, dtype: jnp.dtype) -> jax.Array:
    """r, [K, K, N, D]: half of every head's dimension is the row's, half the column's."""
    heads = inputs.query.shape[3]
    rows, columns = (
        per_head(table, heads).astype(dtype)
        for table in (inputs.row_embedding, inputs.column_embedding)
    )
    shape = (rows.shape[0], columns.shape[0], *rows.shape[1:])
    rows = jnp.broadcast_to(rows[:, None], shape)
    columns = jnp.broadcast_to(columns[None, :], shape)
    return jnp.concatenate([rows, columns], axis=-1)


def per_head(table: jax.Array, heads: int) -> jax.Array:
    """A table [K, D/2] that the heads share, or [K, N, D/2], as [K, N, D/2]."""
    if table.ndim == 2:
        table = jnp.broadcast_to(table[:, None], (table.shape[0], heads, table.shape[1]))
    return table


def softmax_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Logits, softmax and sums are float32 at least."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
