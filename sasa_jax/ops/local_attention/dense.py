"""Every query against every pixel: the fast form for maps not much larger than the window.

No rim is copied. Slots outside the image have no key here; with the boundary "zero" their share of
the softmax has a closed form, because their logits q_row . row + q_col . col are a sum of a row's
and a column's part:

    sum over outside slots = rows outside x all columns + rows inside x columns outside,

each factor a sum of K exponentials. All terms are positive: nothing cancels, as it would if the
inside were taken off the whole.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention import blocks as core
from sasa_jax.ops.local_attention.blocks import Blocks
from sasa_jax.ops.local_attention.chunks import chunk_size, map_backward, map_forward
from sasa_jax.ops.local_attention.contract import Inputs, Options, differentiable, float32_as_such


@float32_as_such
def _forward(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    to_image = partial(_image, shape=inputs.query.shape)

    def chunk(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        output, log_sum_exp = core.forward(_cut(options, inputs))
        return to_image(output), to_image(log_sum_exp[..., None])[..., 0]

    return map_forward(chunk, _chunk_size(inputs), inputs)


@float32_as_such
def _backward(
    options: Options, inputs: Inputs, log_sum_exp: jax.Array, cotangent: jax.Array
) -> Inputs:
    def chunk(inputs: Inputs, *images: jax.Array) -> Inputs:
        blocks, uncut = jax.vjp(partial(_cut, options), inputs)
        log_sum_exp, cotangent = map(_flat, images)
        return uncut(core.backward(blocks, log_sum_exp[..., 0], cotangent))[0]

    return map_backward(chunk, _chunk_size(inputs), inputs, log_sum_exp[..., None], cotangent)


dense = differentiable(_forward, _backward)


def _chunk_size(inputs: Inputs) -> int:
    _, height, width, heads, _ = inputs.query.shape
    return chunk_size(inputs, (height * width) ** 2 * heads)  # the logits


def _cut(options: Options, inputs: Inputs) -> Blocks:
    """One block an image and head, over the axes (B, N)."""
    height, width = inputs.query.shape[1:3]
    query = (inputs.query * options.scale).transpose(0, 3, 1, 2, 4)
    # Of keys at -K//2 to H - 1 + K//2, so beyond the image too.
    rows, columns = core.relative_logits(options, inputs, query)
    reach = options.window // 2
    inside_rows = rows[..., reach : reach + height]
    inside_columns = columns[..., reach : reach + width]
    padding = None
    if options.boundary == "zero" and reach:
        outside_rows = jnp.concatenate([rows[..., :reach], rows[..., reach + height :]], axis=-1)
        outside_columns = jnp.concatenate(
            [columns[..., :reach], columns[..., reach + width :]], axis=-1
        )
        lse = partial(jax.nn.logsumexp, axis=-1)
        padding = jnp.logaddexp(
            lse(outside_rows) + lse(columns), lse(inside_rows) + lse(outside_columns)
        )
    key, value = (
        None if x is None else _flat(x).swapaxes(-1, -2) for x in (inputs.key, inputs.value)
    )
    query = query.reshape(*query.shape[:2], height * width, query.shape[-1])
    return Blocks(query, key, value, inside_rows, inside_columns, padding)


def _flat(image: jax.Array) -> jax.Array:
    """[B, H, W, N, D] to [B, N, H*W, D]."""
    batch, height, width, heads, dim = image.shape
    return image.transpose(0, 3, 1, 2, 4).reshape(batch, heads, height * width, dim)


def _image(flat: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_flat`; `shape`: [any, H, W, N, any]."""
    batch, heads, _, dim = flat.shape
    return flat.reshape(batch, heads, *shape[1:3], dim).transpose(0, 2, 3, 1, 4)
