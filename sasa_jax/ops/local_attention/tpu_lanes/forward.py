"""The forward kernel of local attention on lanes."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from sasa_jax.ops.local_attention.tpu_lanes import pixels
from sasa_jax.ops.local_attention.tpu_lanes.pixels import LANES, LN2, OUTSIDE, SUBLANES, Plan


class ForwardRefs(NamedTuple):
    """table: [1, 2 K * 8, ...] or None; the others [1, columns, 8 D, lanes]; key may be None."""

    table: Any
    query: Any
    key: Any
    value: Any


class ForwardScratch(NamedTuple):
    """key, value: rings; query, output: [group, 8 D, lanes]; the others [group, ..., 8, lanes].

    bias: the row logits, then the column logits. logits: of the window, later its weights. shift:
    what takes a row's logits to base-2 logarithms of weights.
    """

    key: Any
    value: Any
    query: Any
    bias: Any
    logits: Any
    shift: Any
    output: Any


def forward_kernel(
    plan: Plan, refs: ForwardRefs, output_ref, log_sum_exp_ref, scratch: ForwardScratch
) -> None:
    step = pixels.here(plan)
    rings = [
        (row, ring)
        for row, ring in ((refs.value, scratch.value), (refs.key, scratch.key))
        if row is not None
    ]
    pixels.clear_rows(step, [ring for _, ring in rings])

    for row, ring in rings:
        pixels.stage_rim(step, row, ring)

    @pl.when(step.row < 0)
    def _():
        @pl.loop(0, plan.tile)
        def _(column):
            for row, ring in rings:
                pixels.stage(step, row, ring, column)

    @pl.when(step.row >= 0)
    def _():
        for i in range(plan.group):
            _place(step, refs, scratch, i, i)

        @pl.loop(0, plan.tile // plan.group)
        def _(number):
            _attend(step, refs, output_ref, log_sum_exp_ref, scratch, number * plan.group)


def _place(step: pixels.Step, refs: ForwardRefs, scratch: ForwardScratch, column, i: int) -> None:
    pixels.place_bias(step, refs, scratch, column, i)
    if step.plan.content:
        pixels.place_query(step.plan, refs, scratch, column, i)


def _attend(
    step: pixels.Step, refs: ForwardRefs, output_ref, log_sum_exp_ref, scratch, first
) -> None:
    """One group of queries, from column `first` of the tile.

    Values are staged while logits are computed, which do not read them, keys and the next group's
    queries while values are: the scheduler cannot tell the ring's rows apart.
    """
    plan = step.plan
    window, group = plan.window, plan.group
    following = jnp.minimum(first + group, plan.tile - group)
    unrolled = group * window**2 * (4 * plan.dim + 3) <= 16000

    def stage_value(i) -> None:
        pixels.stage(step, refs.value, scratch.value, first + i)

    def prepare(i) -> None:
        if plan.content:
            pixels.stage(step, refs.key, scratch.key, first + i)
            pixels.place_query(plan, refs, scratch, following + i, i)
        pixels.place_bias(step, refs, scratch, following + i, i)

    def highest_of_row(offset, highest, side):
        for work in side:
            work()
        row_highest = [None] * group
        for i, b, logit in pixels.logits(step, scratch, first, offset):
            scratch.logits[i, offset * window + b] = logit
            row_highest[i] = logit if row_highest[i] is None else jnp.maximum(row_highest[i], logit)
        if plan.biased:
            row_highest = [x + scratch.bias[i, offset] for i, x in enumerate(row_highest)]
        return [jnp.maximum(x, y) for x, y in zip(highest, row_highest, strict=True)]

    lowest = [jnp.full((SUBLANES, LANES), 2 * OUTSIDE)] * group
    highest = pixels.over_rows(plan, highest_of_row, lowest, stage_value, unrolled)
    for i in range(group):
        for offset in range(window):
            shift = highest[i]
            scratch.shift[i, offset] = shift - scratch.bias[i, offset] if plan.biased else shift

    def weigh(offset, sums, side):
        for work in side:
            work()
        totals, outputs = list(sums[0]), [list(x) for x in sums[1]]
        for i in range(group):
            shift = scratch.shift[i, offset]
            for b in range(window):
                weight = jnp.exp2(scratch.logits[i, offset * window + b] - shift)
                totals[i] += weight
                scratch.logits[i, offset * window + b] = weight
        slot = step.slot(offset)
        for column, queries in pixels.pairs(plan):
            value = pixels.numbers(scratch.value, slot, first + column)
            for i, b in queries:
                weight = scratch.logits[i, offset * window + b]
                outputs[i] = [x + weight * v for x, v in zip(outputs[i], value, strict=True)]
        return totals, outputs

    zero = jnp.zeros((SUBLANES, LANES), jnp.float32)
    start = [zero] * group, [[zero] * plan.dim for _ in range(group)]
    totals, outputs = pixels.over_rows(plan, weigh, start, prepare, unrolled)
    for i in range(group):
        inverse = 1 / totals[i]
        for d, number in enumerate(outputs[i]):
            scratch.output[i, d * SUBLANES : (d + 1) * SUBLANES] = number * inverse
        output_ref[0, first + i] = pixels.gather(scratch.output, i).astype(output_ref.dtype)
        log_sum_exp_ref[0, first + i] = (highest[i] + jnp.log2(totals[i])) * LN2
