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
from sasa_jax.ops.local_attention.chunks import Cutting, blockwise
from sasa_jax.ops.local_attention.contract import Inputs, Options


def _cutting(options: Options, inputs: Inputs) -> Cutting:
    _, height, width, heads, _ = inputs.query.shape
    return Cutting(
        cut=partial(_cut, options),
        to_queries=_flat,
        to_image=partial(_image, height=height, width=width),
        numbers_per_image=(height * width) ** 2 * heads,
    )


dense = blockwise(_cutting)


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


def _image(flat: jax.Array, height: int, width: int) -> jax.Array:
    """The inverse of `_flat`."""
    batch, heads, _, dim = flat.shape
    return flat.reshape(batch, heads, height, width, dim).transpose(0, 2, 3, 1, 4)
