"""The kernels of local attention on lanes: what one TPU core does for 128 images and 8 heads.

A vector register holds one number of 8 heads (sublanes) and 128 images (lanes), so a query, key or
value is D registers, every shift of the window is an address, and nothing crosses lanes.

Time runs down the map: step s of the grid brings in row s of keys and values and attends from row
s - K//2 - 1, whose window is complete by then. Keys and values lie in rings of K + 1 rows, in
float32, with K//2 columns on either side: zeros, or a neighbouring tile's. `group` queries of a
row are worked on together, so that a key that is loaded serves several of them.

Softmax is in base 2 (the hardware's): queries and tables come scaled by log2(e).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sasa_jax.ops.local_attention.contract import OUTSIDE

LANES, SUBLANES = 128, 8
LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Plan:
    """The static shape of one call; a map is `width` columns, `tile` of them a grid step."""

    window: int
    height: int
    width: int
    dim: int
    tile: int
    group: int
    scale: float
    mask: bool  # boundary "mask"
    packed: bool  # query, key and value lie in one array
    content: bool  # there are keys
    position: bool  # there are tables

    @property
    def reach(self) -> int:
        return self.window // 2

    @property
    def places(self) -> int:
        """Arrays that attention is of: queries, keys if there are, values."""
        return 2 + self.content

    @property
    def ring(self) -> tuple[int, int]:
        """Rows and columns of the rings of keys and values; no one reads the last row."""
        return self.window + 2, self.tile + 2 * self.reach

    @property
    def biased(self) -> bool:
        return self.position or self.mask


class Step(NamedTuple):
    """Where a grid step is: its number, and its tile's first column."""

    number: jax.Array
    tile: jax.Array
    plan: Plan

    @property
    def row(self) -> jax.Array:
        """The row of queries."""
        return self.number - self.plan.reach - 1

    def slot(self, offset: int | jax.Array) -> jax.Array:
        """The ring's row with the keys of window row `offset`."""
        rows = self.plan.window + 1
        return jax.lax.rem(self.row - self.plan.reach + offset + 2 * rows, rows)

    def incoming(self) -> jax.Array:
        """The ring's row for the row that arrives; past the map, the one that no one reads."""
        rows = self.plan.window + 1
        return jnp.where(self.number < self.plan.height, jax.lax.rem(self.number, rows), rows)


def here(plan: Plan) -> Step:
    """The grid is (images, heads, tiles, steps)."""
    return Step(pl.program_id(3), pl.program_id(2) * plan.tile, plan)


def spread(x: jax.Array, ref, *index: int | jax.Array) -> None:
    """Stores one pixel [8 D, lanes], heads before dims, as it is computed on: dims before heads."""
    dim = x.shape[0] // SUBLANES
    x, ref = x.astype(jnp.float32), ref.at[index]
    for head in range(SUBLANES):
        part = x[head * dim : (head + 1) * dim]
        ref[pl.ds(head, dim, stride=SUBLANES), :] = part


def gather(ref, *index: int | jax.Array) -> jax.Array:
    """The inverse of `spread`."""
    dim = ref.shape[-2] // SUBLANES
    ref = ref.at[index]
    return jnp.concatenate([ref[pl.ds(head, dim, stride=SUBLANES), :] for head in range(SUBLANES)])


def numbers(ref, *index: int | jax.Array) -> list[jax.Array]:
    """The D registers of one pixel."""
    return [ref[*index, pl.ds(start, SUBLANES), :] for start in range(0, ref.shape[-2], SUBLANES)]


def dot(x: Sequence[jax.Array], y: Sequence[jax.Array], start: jax.Array | None) -> jax.Array:
    for a, b in zip(x, y, strict=True):
        start = a * b if start is None else start + a * b
    return start


def clear(ref, row: jax.Array) -> None:
    """Zeros a ring's row, a pixel at a time."""

    @pl.loop(0, ref.shape[1])
    def _(column):
        ref[row, column] = jnp.zeros(ref.shape[2:], ref.dtype)


def clear_rows(step: Step, rings: Sequence) -> None:
    """Zeros the rings before the first row, and a row of them for each beyond the last."""
    rows = step.plan.window + 1

    @pl.when(step.number == 0)
    def _():
        for ring in rings:

            @pl.loop(0, rows)
            def _(row, ring=ring):
                clear(ring, row)

    @pl.when(step.number >= step.plan.height)
    def _():
        for ring in rings:
            clear(ring, jax.lax.rem(step.number, rows))


def stage(step: Step, row_ref, ring, column: int | jax.Array) -> None:
    """Brings a pixel of the tile, `column` of it, from the row that arrives into a ring."""
    spread(row_ref[0, step.tile + column], ring, step.incoming(), step.plan.reach + column)


def stage_rim(step: Step, row_ref, ring) -> None:
    """Brings in what lies left and right of the tile."""
    plan = step.plan
    if plan.tile == plan.width or plan.reach == 0:
        return

    @pl.loop(0, 2 * plan.reach)
    def _(i):
        place = jnp.where(i < plan.reach, i, i + plan.tile)
        column = step.tile - plan.reach + place
        inside = (column >= 0) & (column < plan.width)
        pixel = row_ref[0, jnp.clip(column, 0, plan.width - 1)].astype(jnp.float32)
        spread(jnp.where(inside, pixel, 0.0), ring, step.incoming(), place)


def place_query(plan: Plan, refs, scratch, column, i) -> None:
    """Query `column` of the tile, scaled, into place `i`."""
    query = refs.query[0, column].astype(jnp.float32)
    spread(query * (plan.scale / LN2), scratch.query, i)


def place_bias(step: Step, refs, scratch, column: jax.Array, i: int) -> None:
    """The row and column logits of query `column` of the tile into place `i`."""
    plan = step.plan
    if not plan.biased:
        return
    if plan.position:
        bias = product(refs.table[0], refs.query[0, column])
        bias = bias.reshape(2, plan.window, SUBLANES, LANES)
    else:
        bias = jnp.zeros((2, plan.window, SUBLANES, LANES), jnp.float32)
    places = (step.row, plan.height), (step.tile + column, plan.width)
    for axis, (place, length) in enumerate(places):
        for offset in range(plan.window):
            logit = bias[axis, offset]
            if plan.mask:
                key = place + offset - plan.reach
                logit += jnp.where((key >= 0) & (key < length), 0.0, OUTSIDE)
            scratch.bias[i, axis * plan.window + offset] = logit


def product(table: jax.Array, pixel: jax.Array) -> jax.Array:
    """The one thing that the matrix unit does: table @ pixel [..., lanes].

    A bfloat16 table comes as two halves whose sum is what is meant: see local attention on lanes.
    """
    precision = None
    if pixel.dtype == jnp.bfloat16:
        pixel = jnp.concatenate([pixel, pixel])
    else:
        precision = jax.lax.Precision.HIGHEST
    return jnp.dot(table, pixel, precision=precision, preferred_element_type=jnp.float32)


def pairs(plan: Plan) -> list[tuple[int, list[tuple[int, int]]]]:
    """The group's keys in one row of the window: each with its (query, window column)."""
    return [
        (key, [(i, key - i) for i in range(plan.group) if 0 <= key - i < plan.window])
        for key in range(plan.group + plan.window - 1)
    ]


def logits(step: Step, scratch, first: jax.Array, offset: int | jax.Array, own=0):
    """Yields (query, window column, logit without the row's bias) for one row of the window.

    The group's queries lie from place `own` on.
    """
    plan = step.plan
    slot = step.slot(offset)
    for column, queries in pairs(plan):
        key = numbers(scratch.key, slot, first + column) if plan.content else []
        for i, b in queries:
            logit = scratch.bias[i, plan.window + b] if plan.biased else None
            query = numbers(scratch.query, own + i) if plan.content else []
            yield i, b, dot(query, key, logit)


def over_rows(plan: Plan, body: Callable, carry, side: Callable, unrolled: bool):
    """carry = body(offset, carry, side work) for each row of the window.

    `side(i)` is work on query i of the group and its like, to fill gaps in the schedule; in a loop
    it may be done more than once.
    """
    window, group = plan.window, plan.group
    if unrolled:
        for offset in range(window):
            share = range(offset * group // window, (offset + 1) * group // window)
            carry = body(offset, carry, [partial(side, i) for i in share])
        return carry
    if group == 1:  # again and again would cost more than the gaps
        side(0)
        return jax.lax.fori_loop(0, window, partial(body, side=()), carry)
    share = -(-group // window)

    def row(offset, carry):
        places = [jnp.minimum(share * offset + n, group - 1) for n in range(share)]
        return body(offset, carry, [partial(side, i) for i in places])

    return jax.lax.fori_loop(0, window, row, carry)
