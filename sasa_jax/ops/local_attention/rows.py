"""One row of the window at a time, with columns, images and heads along the vector's lanes.

A map is laid out as [H, D, columns * images * heads]. A step to the next column is then an offset
in the last axis and a step to the next row one in the first: no window is copied, nothing outside
a query's window is looked at, and every product is a multiply-add of long contiguous vectors. A
loop goes over the window's rows, with a running softmax forward, so that K logits a query exist at
a time and not K^2.

The relative term is q . r = q_row . row + q_column . column: K + K dot products of D/2 a query.
"""

import operator
from collections.abc import Iterable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.ops.local_attention.chunks import chunk_size, map_backward, map_forward
from sasa_jax.ops.local_attention.contract import (
    OUTSIDE,
    Inputs,
    Options,
    differentiable,
    float32_as_such,
)
from sasa_jax.ops.local_attention.definition import softmax_dtype

# Channels that one loop of `_correlate` adds up; with 16, dot products took twice as long on CPU.
CHANNELS = 8


@float32_as_such
def _forward(options: Options, inputs: Inputs) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    output, log_sum_exp = map_forward(
        partial(_forward_chunk, options), _chunk_size(options, inputs), inputs
    )
    return output, (output, log_sum_exp)


@float32_as_such
def _backward(
    options: Options,
    inputs: Inputs,
    saved: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> Inputs:
    def chunk(inputs: Inputs, output: jax.Array, *images: jax.Array) -> Inputs:
        if rounded:
            output, _ = _forward_chunk(options, inputs)
        return _backward_chunk(options, inputs, output, *images)

    # y . dy is taken off the cotangent of every weight: 16 bits of y would show in all gradients.
    rounded = inputs.query.dtype != softmax_dtype(inputs.query.dtype)
    return map_backward(chunk, _chunk_size(options, inputs), inputs, *saved, cotangent)


rows = differentiable(_forward, _backward)


def _chunk_size(options: Options, inputs: Inputs) -> int:
    """Few images: small chunks, which stay in cache, were the fastest (measured on CPU)."""
    _, height, width, heads, dim = inputs.query.shape
    numbers = height * width * heads * (4 * dim + 3 * options.window)  # maps, logits of one row
    return chunk_size(inputs, numbers, limit=2**21)


def _forward_chunk(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Output [b, H, W, N, D] and log-sum-exp [b, H, W, N] of b images."""
    shape, reach = inputs.query.shape, options.window // 2
    height, step, offsets = shape[1], shape[0] * shape[3], _offsets(options, shape)
    query, key, value = _maps(options, inputs)
    key, value = (_rim(x, reach, reach * step) for x in (key, value))
    columns = _column_logits(options, inputs, query, 0)

    def window_row(state: tuple, row: tuple) -> tuple[tuple, None]:
        highest, total, output = state
        index, table, outside = row
        key_row, value_row = _window_row((key, value), index, height)
        start = _row_logits(query, table) + outside
        logits = _correlate(query, key_row, [start + x for x in columns], offsets)
        highest, before = reduce(jnp.maximum, logits, highest), highest
        weights = _together([jnp.exp(x - highest) for x in logits])
        keep = jnp.exp(before - highest)
        total = total * keep + _sum(weights)
        output = output * keep[:, None] + _weighted(weights, value_row, offsets)
        return (highest, total, output), None

    nothing = jnp.zeros_like(query)
    start = (nothing[:, 0] - jnp.inf, nothing[:, 0], nothing)
    (highest, total, output), _ = jax.lax.scan(window_row, start, _rows(options, inputs, 0))
    log_sum_exp = (highest + jnp.log(total))[:, None]
    return _image(output / total[:, None], shape), _image(log_sum_exp, shape)[..., 0]


def _backward_chunk(
    options: Options,
    inputs: Inputs,
    output: jax.Array,
    log_sum_exp: jax.Array,
    cotangent: jax.Array,
) -> Inputs:
    """The inputs' cotangents for b images; output and cotangent [b, H, W, N, D].

    Weights are computed for K//2 columns more on either side and set to 0 there: a key collects
    from the queries of all columns around it.
    """
    shape, reach = inputs.query.shape, options.window // 2
    height, step, offsets = shape[1], shape[0] * shape[3], _offsets(options, shape)
    lanes, rim = shape[2] * step, reach * step
    own_query, key, value = _maps(options, inputs)
    output, cotangent, log_sum_exp = map(_lanes, (output, cotangent, log_sum_exp[..., None]))
    mean = _rim(jnp.sum(output * cotangent, axis=1), 0, rim)
    query, cotangent, log_sum_exp = (_rim(x, 0, rim) for x in (own_query, cotangent, log_sum_exp))
    key, value = (_rim(x, reach, 2 * rim) for x in (key, value))
    columns = [x - log_sum_exp[:, 0] for x in _column_logits(options, inputs, query, reach)]
    inside = np.pad(np.ones((1, lanes), bool), ((0, 0), (rim, rim)))

    def collected(slots: Sequence[jax.Array], x: jax.Array, index: jax.Array) -> jax.Array:
        """What the keys get from the queries that see them in this row of the window."""
        image = _sum(
            s[:, None, o : o + lanes] * x[..., o : o + lanes]
            for s, o in zip(slots, offsets[::-1], strict=True)
        )
        image = _rim(image, 2 * reach, 0)
        return jax.lax.dynamic_slice_in_dim(image, 2 * reach - index, height + 2 * reach)

    def window_row(state: tuple, row: tuple) -> tuple[tuple, jax.Array]:
        queries, keys, values, by_column = state
        index, table, outside = row
        key_row, value_row = _window_row((key, value), index, height)
        start = _row_logits(query, table) + outside
        logits = _correlate(query, key_row, [start + x for x in columns], offsets)
        weights = _together([jnp.exp(jnp.where(inside, x, -jnp.inf)) for x in logits])
        slots = _correlate(cotangent, value_row, [-mean] * options.window, offsets)
        slots = _together(
            [jnp.where(inside, w * x, 0) for w, x in zip(weights, slots, strict=True)]
        )
        own = [x[:, rim : rim + lanes] for x in slots]
        queries += _weighted(own, key_row[..., rim:], offsets)
        keys += collected(slots, query, index)
        values += collected(weights, cotangent, index)
        by_column = _together([x + y for x, y in zip(by_column, own, strict=True)])
        return (queries, keys, values, by_column), _sum(own)

    nothing = jnp.zeros_like(own_query)
    keys = _rim(nothing, reach, 0)
    start = (nothing, keys, keys, (nothing[:, 0],) * options.window)
    (queries, keys, values, by_column), by_row = jax.lax.scan(
        window_row, start, _rows(options, inputs, reach)
    )
    tables = (None, None)
    if inputs.row_embedding is not None:
        _, transpose = jax.vjp(_table_logits, own_query, *inputs[3:])
        from_tables, *tables = transpose((by_row, jnp.stack(by_column)))
        queries += from_tables
    keys, values = (_image(x[reach : reach + height], shape) for x in (keys, values))
    queries = _image(queries * options.scale, shape)
    return Inputs(queries, None if inputs.key is None else keys, values, *tables)


def _table_logits(
    query: jax.Array, row_embedding: jax.Array, column_embedding: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Row and column logits, each [K, H, X], of queries [H, D, X]."""
    half = query.shape[1] // 2

    def logits(table: jax.Array, query: jax.Array) -> jax.Array:
        if table.ndim == 2:
            return jnp.einsum("kd,hdx->khx", table, query)
        by_head = query.reshape(*query.shape[:2], -1, table.shape[1])
        return jnp.einsum("knd,hdxn->khxn", table, by_head).reshape(-1, *query[:, 0].shape)

    return logits(row_embedding, query[:, :half]), logits(column_embedding, query[:, half:])


def _column_logits(
    options: Options, inputs: Inputs, query: jax.Array, beyond: int
) -> list[jax.Array]:
    """The column's part of the logits, K x [H, X], of queries `beyond` columns further out too."""
    batch, _, width, heads, _ = inputs.query.shape
    outside = _outside(options, width)  # [K, W]
    outside = np.repeat(np.pad(outside, ((0, 0), (beyond, beyond))), batch * heads, axis=1)
    logits = jnp.zeros_like(query, shape=(options.window, *query[:, 0].shape))
    if inputs.column_embedding is not None:
        logits = _table_logits(query, *inputs[3:])[1]
    if options.boundary == "mask":
        logits += outside[:, None].astype(query.dtype)
    return list(logits)


def _rows(options: Options, inputs: Inputs, beyond: int) -> tuple:
    """For every row of the window: its index, its table [D/2, 1 or X], [H, 1] of `OUTSIDE` or 0."""
    batch, height, width = inputs.query.shape[:3]
    dtype = inputs.query.dtype
    table = inputs.row_embedding
    if table is None:
        table = jnp.zeros((options.window, 0, 1), dtype)
    elif table.ndim == 2:
        table = table[..., None]
    else:
        table = jnp.tile(table.swapaxes(1, 2), (1, 1, batch * (width + 2 * beyond)))
    outside = _outside(options, height)[..., None].astype(dtype)
    return np.arange(options.window), table, outside


def _row_logits(query: jax.Array, table: jax.Array) -> jax.Array:
    """One window row's part of the logits, [H, X].

    A sum in the loop, not a matrix product before it: XLA 0.12 takes a loop of elementwise
    operations alone for a small one and runs all of it on one thread.
    """
    return jnp.sum(query[:, : table.shape[0]] * table[None], axis=1)


def _outside(options: Options, length: int) -> np.ndarray:
    """[K, length]: `OUTSIDE` where the key of a slot is beyond the image, if these are masked."""
    place = np.arange(options.window)[:, None] - options.window // 2 + np.arange(length)
    masked = ((place < 0) | (place >= length)) & (options.boundary == "mask")
    return np.where(masked, OUTSIDE, 0.0)


def _window_row(maps: Sequence[jax.Array], index: jax.Array, height: int) -> list[jax.Array]:
    """The rows of keys that queries see in one row of the window, copied.

    Read in place, the position, which the loop knows only as it runs, kept XLA 0.10 from
    vectorising.
    """
    return _together([jax.lax.dynamic_slice_in_dim(x, index, height) for x in maps])


def _correlate(
    x: jax.Array, y: jax.Array, start: Sequence[jax.Array], offsets: Sequence[int]
) -> Sequence[jax.Array]:
    """start[c] + x . y, c columns on: [H, X] each, x [H, D, X], y [H, D, X + (K - 1) * step]."""
    lanes = x.shape[-1]
    for first in range(0, x.shape[1], CHANNELS):
        channels = range(first, min(first + CHANNELS, x.shape[1]))
        start = _together(
            [
                s + _sum(x[:, d] * y[:, d, o : o + lanes] for d in channels)
                for s, o in zip(start, offsets, strict=True)
            ]
        )
    return start


def _weighted(slots: Sequence[jax.Array], x: jax.Array, offsets: Sequence[int]) -> jax.Array:
    """The sum over c of slots[c] times x c columns on, [H, D, X]; as in `_correlate`."""
    lanes = slots[0].shape[-1]
    return _sum(s[:, None] * x[..., o : o + lanes] for s, o in zip(slots, offsets, strict=True))


def _together(arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """The arrays as they are, computed in one loop and written out.

    A sum of several arrays at once, each over an axis of two that holds the array and zeros, is
    the one operation that XLA compiles to a loop with several results, so that what the arrays
    have in common is loaded once; and it does not compute it anew in every operation that follows.
    """
    zero = np.zeros((), arrays[0].dtype)
    axis = [(0, 0, 0), (0, 1, 0)] + [(0, 0, 0)] * (arrays[0].ndim - 1)
    pairs = tuple(jax.lax.pad(x[:, None], zero, axis) for x in arrays)
    zeros = (zero,) * len(pairs)
    return tuple(jax.lax.reduce(pairs, zeros, lambda x, y: tuple(map(operator.add, x, y)), (1,)))


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return reduce(operator.add, arrays)


def _offsets(options: Options, shape: tuple[int, ...]) -> list[int]:
    """Lanes from a query's first slot in a row of the window to the others."""
    return [c * shape[0] * shape[3] for c in range(options.window)]


def _maps(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, scaled, key and value, each [H, D, X]. Without keys the key is 0."""
    key = jnp.zeros_like(inputs.query) if inputs.key is None else inputs.key
    query, key, value = map(_lanes, (inputs.query, key, inputs.value))
    return query * options.scale, key, value


def _lanes(image: jax.Array) -> jax.Array:
    """[b, H, W, N, D] to [H, D, W * b * N]."""
    _, height, _, _, dim = image.shape
    return image.transpose(1, 4, 2, 0, 3).reshape(height, dim, -1)


def _image(lanes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_lanes`; `shape`: [b, H, W, N, any]."""
    batch, height, width, heads, _ = shape
    return lanes.reshape(height, -1, width, batch, heads).transpose(3, 0, 2, 4, 1)


def _rim(x: jax.Array, rows: int, lanes: int) -> jax.Array:
    """Zeros around the first and the last axis."""
    return jnp.pad(x, [(rows, rows)] + [(0, 0)] * (x.ndim - 2) + [(lanes, lanes)])
