"""Attention of blocks of queries to blocks of keys: the core that the halo and dense forms share.

A form cuts the map into blocks ("..." below), each of a x b queries and u x v keys, and says with
row and column logits which key stands where: a slot outside the window holds `OUTSIDE` there. The
relative term costs 2K dot products a query and not K^2, because q . r = q_row . row + q_col . col.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import Inputs, Options
from sasa_jax.ops.local_attention.definition import per_head

# Finite, so that a row without any slot (a padding query) gives no NaN; exp of it is exactly 0.
OUTSIDE = -1e30


class Blocks(NamedTuple):
    """One chunk of images, cut up, in the softmax' dtype.

    query: [..., a*b, D], scaled; key: [..., D, u*v] or None; value: [..., D, u*v].
    row_logits: [..., a, b, u]; column_logits: [..., a, b, v].
    padding: [..., a, b], the log-sum-exp of in-window slots that no key stands for (their value is
      0), or None where there are none.
    """

    query: jax.Array
    key: jax.Array | None
    value: jax.Array
    row_logits: jax.Array
    column_logits: jax.Array
    padding: jax.Array | None


def relative_logits(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """q . row and q . column, each [B, H, W, N, K], scaled; zero without embeddings."""
    query = inputs.query * options.scale
    if inputs.row_embedding is None:
        nothing = jnp.zeros_like(query, shape=(*query.shape[:-1], options.window))
        return nothing, nothing
    heads, half = query.shape[3], query.shape[4] // 2
    rows = per_head(inputs.row_embedding, heads)
    columns = per_head(inputs.column_embedding, heads)
    return (
        jnp.einsum("bijnd,tnd->bijnt", query[..., :half], rows),
        jnp.einsum("bijnd,tnd->bijnt", query[..., half:], columns),
    )


def skew(logits: jax.Array) -> jax.Array:
    """From offsets to places: [..., a, K] to [..., a, a+K-1], row i moved i to the right.

    What the row does not reach holds `OUTSIDE`. (Padded by a and read with a row length one
    shorter, each row begins one place further on.)
    """
    *lead, queries, window = logits.shape
    padding = ((0, 0),) * (len(lead) + 1) + ((0, queries),)
    flat = jnp.pad(logits, padding, constant_values=OUTSIDE)
    flat = flat.reshape(*lead, queries * (window + queries))[..., :-queries]
    return flat.reshape(*lead, queries, window + queries - 1)


def forward(blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Output [..., a*b, D] and log-sum-exp [..., a*b]."""
    logits, padding = _logits(blocks), _flat_padding(blocks)
    highest = logits.max(axis=-1)
    if padding is not None:
        highest = jnp.maximum(highest, padding)
    weights = jnp.exp(logits - highest[..., None])
    total = weights.sum(axis=-1)
    if padding is not None:
        total += jnp.exp(padding - highest)
    output = weights @ blocks.value.swapaxes(-1, -2) / total[..., None]
    return output, highest + jnp.log(total)


def backward(
    blocks: Blocks, output: jax.Array, log_sum_exp: jax.Array, cotangent: jax.Array
) -> Blocks:
    """The cotangents of the blocks; output and cotangent [..., a*b, D], log_sum_exp [..., a*b]."""
    weights = jnp.exp(_logits(blocks) - log_sum_exp[..., None])
    # softmax' gradient: weight * (its own cotangent - the weighted mean of all, which is y . dy)
    mean = jnp.sum(output * cotangent, axis=-1)
    slots = weights * (cotangent @ blocks.value - mean[..., None])
    square = slots.reshape(*blocks.row_logits.shape, blocks.column_logits.shape[-1])
    query, key = jnp.zeros_like(blocks.query), None
    if blocks.key is not None:
        query = slots @ blocks.key.swapaxes(-1, -2)
        key = blocks.query.swapaxes(-1, -2) @ slots
    padding = _flat_padding(blocks)
    if padding is not None:
        padding = (-jnp.exp(padding - log_sum_exp) * mean).reshape(blocks.padding.shape)
    return Blocks(
        query=query,
        key=key,
        value=cotangent.swapaxes(-1, -2) @ weights,
        row_logits=square.sum(axis=-1),
        column_logits=square.sum(axis=-2),
        padding=padding,
    )


def _logits(blocks: Blocks) -> jax.Array:
    """[..., a*b, u*v]."""
    rows, columns = blocks.row_logits[..., :, None], blocks.column_logits[..., None, :]
    logits = (rows + columns).reshape(*blocks.query.shape[:-1], blocks.value.shape[-1])
    return logits if blocks.key is None else blocks.query @ blocks.key + logits


def _flat_padding(blocks: Blocks) -> jax.Array | None:
    return None if blocks.padding is None else blocks.padding.reshape(blocks.query.shape[:-1])
