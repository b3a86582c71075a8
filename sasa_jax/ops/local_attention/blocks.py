"""Attention of blocks of queries to blocks of keys: the core of the dense form.

"..." below are images and heads. The a x b queries of a block meet u x v keys; relative logits come
for u = a + K - 1 and v = b + K - 1, and dense leaves out those beyond the image. The relative term
is q . r = q_row . row + q_column . column, so u + v dot products of D/2 a query and not K^2 of D. A
key outside a query's window is given the logit `OUTSIDE`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.ops.local_attention.contract import OUTSIDE, Inputs, Options
from sasa_jax.ops.local_attention.definition import per_head


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


def relative_logits(
    options: Options, inputs: Inputs, query: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Row and column logits [..., N, a, b, u] and [..., N, a, b, v] of queries [..., N, a, b, D].

    The first key of a block stands K//2 rows above and K//2 columns left of its first query.
    """
    rows, columns, half = *query.shape[-3:-1], query.shape[-1] // 2
    lead = (1,) * (query.ndim - 3)
    outside_rows = _outside_window(rows, options.window).astype(query.dtype)
    outside_rows = outside_rows.reshape(*lead, rows, 1, -1)
    outside_columns = _outside_window(columns, options.window).astype(query.dtype)
    outside_columns = outside_columns.reshape(*lead, 1, columns, -1)
    if inputs.row_embedding is None:
        nothing = jnp.zeros_like(query[..., :1])
        return nothing + outside_rows, nothing + outside_columns
    row_table, column_table = (
        _placed(per_head(table, query.shape[-4]), queries)
        for table, queries in ((inputs.row_embedding, rows), (inputs.column_embedding, columns))
    )
    return (
        jnp.einsum("...nabd,naud->...nabu", query[..., :half], row_table) + outside_rows,
        jnp.einsum("...nabd,nbvd->...nabv", query[..., half:], column_table) + outside_columns,
    )


def forward(blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Output [..., a*b, D] and log-sum-exp [..., a*b]."""
    (logits, highest), padding = _logits(blocks), _flat_padding(blocks)
    if padding is not None:
        highest = jnp.maximum(highest, padding)
    weights = jnp.exp(logits - highest[..., None])
    total = weights.sum(axis=-1)
    if padding is not None:
        total += jnp.exp(padding - highest)
    output = jnp.einsum("...qk,...dk->...qd", weights, blocks.value) / total[..., None]
    return output, highest + jnp.log(total)


def backward(blocks: Blocks, log_sum_exp: jax.Array, cotangent: jax.Array) -> Blocks:
    """The cotangents of the blocks; cotangent [..., a*b, D], log_sum_exp [..., a*b]."""
    logits, highest = _logits(blocks)
    # The log-sum-exp itself, which no logit exceeds: see `_logits`.
    weights = jnp.exp(logits - jnp.maximum(log_sum_exp, highest)[..., None])
    # softmax' gradient: weight * (its own cotangent - the weighted mean of all). The mean is
    # y . dy too, but y was rounded to the inputs' dtype, and that would show in all gradients.
    slots = cotangent @ blocks.value
    mean = jnp.sum(weights * slots, axis=-1)
    slots = weights * (slots - mean[..., None])
    square = slots.reshape(*blocks.row_logits.shape, blocks.column_logits.shape[-1])
    query, key = jnp.zeros_like(blocks.query), None
    if blocks.key is not None:
        query = jnp.einsum("...qk,...dk->...qd", slots, blocks.key)
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


def _logits(blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Logits [..., a*b, u*v] and the highest of each query, [..., a*b].

    Asked for the maximum over (u, v) here, XLA writes the logits out in four axes before exp reads
    them in two. Both loops are then vectorised on CPU; fused into one they took ten times as long.
    """
    logits = blocks.row_logits[..., :, None] + blocks.column_logits[..., None, :]
    if blocks.key is not None:
        logits += (blocks.query @ blocks.key).reshape(logits.shape)
    highest = logits.max(axis=(-2, -1)).reshape(blocks.query.shape[:-1])
    return logits.reshape(*highest.shape, -1), highest


def _flat_padding(blocks: Blocks) -> jax.Array | None:
    return None if blocks.padding is None else blocks.padding.reshape(blocks.query.shape[:-1])


def _placed(table: jax.Array, queries: int) -> jax.Array:
    """From offsets to places: [K, N, D/2] to [N, a, a+K-1, D/2], 0 outside the window."""
    window = table.shape[0]
    offset = np.clip(_offsets(queries, window), 0, window - 1)
    inside = (_outside_window(queries, window) == 0).astype(table.dtype)
    return (table[offset] * inside[..., None, None]).transpose(2, 0, 1, 3)


def _outside_window(queries: int, window: int) -> np.ndarray:
    """[a, a+K-1]: `OUTSIDE` for keys outside the query's window, 0 within."""
    offset = _offsets(queries, window)
    return np.where((offset >= 0) & (offset < window), 0.0, OUTSIDE)


def _offsets(queries: int, window: int) -> np.ndarray:
    """The table index of each query and key, [a, a+K-1]."""
    return np.arange(queries + window - 1)[None] - np.arange(queries)[:, None]
