"""Operands and results of the kernels, and what is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import (
    Inputs,
    Options,
    PackedInputs,
    Problem,
    differentiable,
)
from sasa_jax.ops.local_attention.definition import per_head
from sasa_jax.ops.local_attention.tpu_common import DTYPES, fast_memory
from sasa_jax.ops.local_attention.tpu_lanes.backward import BackwardRefs
from sasa_jax.ops.local_attention.tpu_lanes.forward import ForwardRefs
from sasa_jax.ops.local_attention.tpu_lanes.launch import backward_pass, forward_pass
from sasa_jax.ops.local_attention.tpu_lanes.pixels import LANES, LN2, SUBLANES, Plan

MAX_DIM, MAX_WINDOW = 64, 15


def _forward(
    options: Options, inputs: Inputs | PackedInputs
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Saves the output [B, H, W, N, D], and the log-sum-exp as the backward kernel reads it."""
    plan = _plan(options, inputs, backward=False)
    operands = ForwardRefs(_matrix(plan, inputs), *_images(inputs))
    output, log_sum_exp = _run(forward_pass, plan, operands)
    output = _from_lanes(output[:, :, None], inputs.shape)[:, :, :, 0]
    return output, (output, log_sum_exp)


def _backward(
    options: Options,
    inputs: Inputs | PackedInputs,
    saved: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> Inputs | PackedInputs:
    plan = _plan(options, inputs, backward=True)
    query, key, value = _images(inputs)
    output, log_sum_exp = saved
    operands = BackwardRefs(
        table=_matrix(plan, inputs),
        spread_table=_spread_table(plan, inputs),
        query=query,
        key=key,
        value=value,
        output=_to_lanes(output[:, :, :, None]),
        log_sum_exp=log_sum_exp,
        cotangent=_to_lanes(cotangent[:, :, :, None]),
    )
    found = _run(backward_pass, plan, operands)
    images = _from_lanes(_joined(plan, found.images, found.rims), inputs.shape)
    tables = _table_gradients(plan, inputs, found.table)
    if plan.packed:
        return PackedInputs(images, *tables)
    query, *key, value = (images[:, :, :, place] for place in range(plan.places))
    return Inputs(query, key[0] if key else None, value, *tables)


tpu_lanes = differentiable(_forward, _backward)  # of either kind of inputs


def _images(inputs: Inputs | PackedInputs) -> list[jax.Array | None]:
    """Query, key and value as the kernels read them; of packed inputs the same array thrice."""
    if isinstance(inputs, PackedInputs):
        return [_to_lanes(inputs.packed)] * 3
    return [None if x is None else _to_lanes(x[:, :, :, None]) for x in inputs[:3]]


def _run(kernel: Callable, plan: Plan, operands: Any) -> Any:
    """Off TPU in Pallas' interpreter."""
    call = partial(kernel, plan, memory=fast_memory())
    return jax.lax.platform_dependent(
        operands, tpu=partial(call, interpret=False), default=partial(call, interpret=True)
    )


def _joined(plan: Plan, whole: jax.Array, rims: jax.Array | None) -> jax.Array:
    """Adds to [H, W, places, ...] what tiles say of their neighbours: [tiles, H, K - 1, ...] of all
    places but the query's."""
    if rims is None:
        return whole
    for number in range(1, plan.width // plan.tile):
        left, right = rims[number, :, : plan.reach], rims[number - 1, :, plan.reach :]
        start = number * plan.tile - plan.reach
        here = whole[:, start : start + 2 * plan.reach, 1:].astype(jnp.float32)
        here += jnp.concatenate([left, right], axis=1)
        place = (0, start, 1, 0, 0)
        whole = jax.lax.dynamic_update_slice(whole, here.astype(whole.dtype), place)
    return whole


def _table_gradients(
    plan: Plan, inputs: Inputs | PackedInputs, sums: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None]:
    """From [B / 128, N / 8, 2 K, D/2 * 8, 128]."""
    if sums is None:
        return None, None
    heads, half = inputs.shape[3], plan.dim // 2
    sums = sums.sum(axis=(0, 4)).reshape(-1, 2, plan.window, half, SUBLANES)
    both = sums.transpose(1, 2, 0, 4, 3).reshape(2, plan.window, -1, half)[:, :, :heads] * LN2
    if inputs.row_embedding.ndim == 2:
        both = both.sum(axis=2)
    rows, columns = both.astype(inputs.row_embedding.dtype)
    return rows, columns


def refuses(problem: Problem) -> str | None:
    """Why this form cannot run a problem, or None."""
    if problem.dtype not in [jnp.dtype(dtype) for dtype in DTYPES]:
        return f"it takes {' and '.join(DTYPES)}, not {problem.dtype}"
    *_, dim = problem.shape
    if dim > MAX_DIM:
        return f"it takes head dimensions up to {MAX_DIM}, not {dim}"
    if problem.options.window > MAX_WINDOW:
        return f"it takes windows up to {MAX_WINDOW}, not {problem.options.window}"
    if _tile(problem.options.window, problem.shape, problem.dtype, backward=True) is None:
        return "the rows that a window spans do not fit the core's memory"
    return None


def cuts(problem: Problem) -> bool:
    """Whether a map's columns are worked on in several tiles, in a problem that is not refused."""
    width = problem.shape[2]
    return _tile(problem.options.window, problem.shape, problem.dtype, backward=True) != width


def _plan(options: Options, inputs: Inputs | PackedInputs, backward: bool) -> Plan:
    packed = isinstance(inputs, PackedInputs)
    _, height, width, _, dim = inputs.shape
    tile = _tile(options.window, inputs.shape, inputs[0].dtype, backward)
    # Enough queries in the registers to use a key that is loaded more than once.
    queries = max(1, 32 // dim)
    return Plan(
        window=options.window,
        height=height,
        width=width,
        dim=dim,
        tile=tile,
        group=max(g for g in range(1, queries + 1) if tile % g == 0),
        scale=options.scale,
        mask=options.boundary == "mask",
        packed=packed,
        content=packed or inputs.key is not None,
        position=inputs.row_embedding is not None,
    )


def _tile(window: int, shape: tuple[int, ...], dtype: jnp.dtype, backward: bool) -> int | None:
    """The most columns at a time whose rings fit the core's memory; they divide the map's."""
    width, dim = shape[2], shape[4]
    number = dim * SUBLANES * LANES  # of one pixel
    rows = window + 2 + backward * window
    images = 6 if backward else 2  # of a tile, and two of whole rows; all twice, for moving
    for tiles in range(1, width + 1):
        tile = width // tiles
        if width % tiles or (tiles > 1 and tile < window):
            continue
        rings = 2 * rows * (tile + window - 1) * number * 4
        blocks = 2 * (images * (tile + window) + 2 * width) * number * dtype.itemsize
        waiting = backward * (window // 2 + 1) * tile * number * dtype.itemsize
        if rings + blocks + waiting + 12 * 2**20 <= fast_memory():
            return tile
    return None


def _to_lanes(x: jax.Array) -> jax.Array:
    """[B, H, W, places, N, D] to [H, W, places N D, B], padded with zeros."""
    batch, height, width, _, heads, _ = x.shape
    images, heads = (0, -batch % LANES), (0, -heads % SUBLANES)
    x = jnp.pad(x, (images, (0, 0), (0, 0), (0, 0), heads, (0, 0)))
    return x.transpose(1, 2, 3, 4, 5, 0).reshape(height, width, -1, x.shape[0])


def _from_lanes(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[H, W, places, N D, B] to [B, H, W, places, N, D], less the padding."""
    batch, _, _, heads, dim = shape
    x = x.reshape(*x.shape[:3], -1, dim, x.shape[-1])
    return x.transpose(5, 0, 1, 2, 3, 4)[:batch, :, :, :, :heads]


def _embeddings(inputs: Inputs | PackedInputs) -> jax.Array:
    """The rows' table and then the columns', [2 K, N, D/2] float32, N padded."""
    heads = inputs.shape[3]
    both = jnp.concatenate(
        [per_head(table, heads) for table in (inputs.row_embedding, inputs.column_embedding)]
    )
    return jnp.pad(both.astype(jnp.float32), ((0, 0), (0, -heads % SUBLANES), (0, 0)))


def _spread_table(plan: Plan, inputs: Inputs | PackedInputs) -> jax.Array | None:
    """[N / 8, 2 K, D/2 * 8, 128]: every number on all images."""
    if not plan.position:
        return None
    both = _embeddings(inputs)
    offsets, heads, half = both.shape
    table = both.reshape(offsets, -1, SUBLANES, half).transpose(1, 0, 3, 2)
    table = table.reshape(heads // SUBLANES, offsets, -1, 1)
    return jnp.broadcast_to(table, (*table.shape[:3], LANES))


def _matrix(plan: Plan, inputs: Inputs | PackedInputs) -> jax.Array | None:
    """[N / 8, 2 K * 8, 8 D]: takes a pixel's channels to its relative logits, scaled.

    For bfloat16 queries [..., 16 D], two numbers side by side for one: scaled tables are not
    bfloat16 numbers.
    """
    if not plan.position:
        return None
    rows, columns = jnp.split(_embeddings(inputs) * (plan.scale / LN2), 2)
    none = jnp.zeros_like(rows)
    matrix = _block_diagonal(
        jnp.concatenate(
            [jnp.concatenate([rows, none], axis=-1), jnp.concatenate([none, columns], axis=-1)]
        )
    )
    if inputs.row_embedding.dtype != jnp.bfloat16:
        return matrix
    high = matrix.astype(jnp.bfloat16)
    low = (matrix - high.astype(jnp.float32)).astype(jnp.bfloat16)
    return jnp.concatenate([high, low], axis=-1)


def _block_diagonal(table: jax.Array) -> jax.Array:
    """[2 K, N, D] to [N / 8, 2 K * 8, 8 D]: a row for each offset and head, on the head's dims."""
    offsets, _, dim = table.shape
    table = table.reshape(offsets, -1, SUBLANES, 1, dim).swapaxes(0, 1)
    own = jnp.eye(SUBLANES)[None, None, :, :, None]
    return (table * own).reshape(-1, offsets * SUBLANES, SUBLANES * dim)
