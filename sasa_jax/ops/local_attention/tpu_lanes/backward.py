"""The backward kernel of local attention on lanes.

Weights are computed again from the log-sum-exp. Gradients of keys and values gather in rings like
those of the keys; a row leaves when the last query that sees it is done.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sasa_jax.ops.local_attention.tpu_lanes import pixels
from sasa_jax.ops.local_attention.tpu_lanes.pixels import LANES, LN2, SUBLANES, Plan


class BackwardRefs(NamedTuple):
    """As in the forward pass; spread_table: [1, 2 K, D/2 * 8, lanes], float32, the tables again."""

    table: Any
    spread_table: Any
    query: Any
    key: Any
    value: Any
    output: Any
    log_sum_exp: Any
    cotangent: Any


class Gradients(NamedTuple):
    """images: [1, columns, places, 8 D, lanes], of queries, keys and values; table: [1, 1, 2 K,
    D/2 * 8, lanes], image by image, over log2(e). rims: [1, 1, K - 1, places - 1, 8 D, lanes], what
    a tile adds left and right of it."""

    table: Any
    images: Any
    rims: Any


class BackwardScratch(NamedTuple):
    """Rings; then [2 group, ..., lanes], places for a group and for the next; then [group, ...].

    weights, slots (their gradients): of one row of the window.
    sums: the slots' sums over rows, then over columns of the window.
    done: the queries' gradients of the last rows, until those of the keys there are done, too.
    """

    key: Any
    value: Any
    key_gradient: Any
    value_gradient: Any
    query: Any
    bias: Any
    cotangent: Any
    mean: Any
    shift: Any
    sums: Any
    query_gradient: Any
    done: Any
    weights: Any
    slots: Any
    product: Any


def backward_kernel(
    plan: Plan, refs: BackwardRefs, gradients: Gradients, scratch: BackwardScratch
) -> None:
    step = pixels.here(plan)
    rings = [scratch.value] + [scratch.key] * plan.content
    sources = [refs.value] + [refs.key] * plan.content
    pixels.clear_rows(step, rings)

    @pl.when(step.number == 0)
    def _():
        for ring in [scratch.value_gradient] + [scratch.key_gradient] * plan.content:

            @pl.loop(0, plan.window)
            def _(row, ring=ring):
                pixels.clear(ring, row)

    if plan.position:

        @pl.when((step.number == 0) & (step.tile == 0))
        def _():
            gradients.table[...] = jnp.zeros_like(gradients.table)

    for source, ring in zip(sources, rings, strict=True):
        pixels.stage_rim(step, source, ring)

    @pl.when(step.row < 0)
    def _():
        @pl.loop(0, plan.tile)
        def _(column):
            for source, ring in zip(sources, rings, strict=True):
                pixels.stage(step, source, ring, column)

    groups = plan.tile // plan.group

    @pl.when((step.row >= 0) & (step.row < plan.height))
    def _():
        for i in range(plan.group):
            _place_query(plan, refs, scratch, i, i)
            _place_bias(step, refs, scratch, i, i)

        @pl.loop(0, groups)
        def _(number):
            _attend(step, refs, gradients, scratch, number)

    _send_queries(step, scratch.done, gradients.images)
    _send(step, scratch.value_gradient, gradients, plan.places - 1, 1.0)
    if plan.content:  # the queries hold log2(e)
        _send(step, scratch.key_gradient, gradients, 1, LN2)


def _slot(step: pixels.Step, offset: int | jax.Array) -> jax.Array:
    """The row of the gradients' rings for window row `offset` of the step's queries."""
    return jax.lax.rem(step.number + offset, step.plan.window)


def _done_slot(step: pixels.Step, age: int) -> jax.Array:
    """Where the gradients of the queries lie that were attended from `age` steps ago."""
    rows = step.plan.reach + 1
    return jax.lax.rem(step.number - age + rows, rows)


def _send_queries(step: pixels.Step, done, out) -> None:
    """Writes out the queries' gradients for the row whose keys are done."""

    @pl.loop(0, step.plan.tile)
    def _(column):
        out[0, column, 0] = done[_done_slot(step, step.plan.reach), column]


def _send(step: pixels.Step, ring, gradients: Gradients, image: int, scale: float) -> None:
    """Writes out the row that no later query sees, and clears it for the row that is next.

    Before the first such row the output's block is that row's too, and is written again.
    """
    plan, slot = step.plan, _slot(step, 0)

    def send(ref, column, place, image) -> None:
        ref[0, column, image] = (pixels.gather(ring, slot, place) * scale).astype(ref.dtype)
        ring[slot, place] = jnp.zeros(ring.shape[2:], ring.dtype)

    @pl.loop(0, plan.tile // plan.group)
    def _(number):
        for i in range(plan.group):
            column = number * plan.group + i
            send(gradients.images, column, plan.reach + column, image)

    if gradients.rims is not None:

        @pl.loop(0, 2 * plan.reach)
        def _(column):
            place = jnp.where(column < plan.reach, column, column + plan.tile)
            send(gradients.rims.at[0], column, place, image - 1)


def _attend(
    step: pixels.Step, refs: BackwardRefs, gradients: Gradients, scratch: BackwardScratch, number
) -> None:
    """One group of queries; on the side the next one is placed, and keys and values brought in."""
    plan = step.plan
    window, group = plan.window, plan.group
    first = number * group
    own = jax.lax.rem(number, 2) * group  # its places, and the next group's
    other = group - own
    following = jnp.minimum(first + group, plan.tile - group)

    def window_row(offset, places):
        slot, gradient_slot = step.slot(offset), _slot(step, offset)
        for i, b, logit in pixels.logits(step, scratch, first, offset, own):
            shift = scratch.shift[i, offset]
            # 0 at most; very large logits differ from their log-sum-exp by a rounding.
            scratch.weights[i, b] = jnp.exp2(
                jnp.minimum(shift if logit is None else logit + shift, 0.0)
            )
        row_sums = [None] * group
        for column, queries in pixels.pairs(plan):
            value = pixels.numbers(scratch.value, slot, first + column)
            for i, b in queries:
                cotangent = pixels.numbers(scratch.cotangent, own + i)
                change = pixels.dot(cotangent, value, -scratch.mean[own + i])
                slot_gradient = scratch.weights[i, b] * change
                scratch.slots[i, b] = slot_gradient
                if plan.position:
                    sums = row_sums[i]
                    row_sums[i] = slot_gradient if sums is None else sums + slot_gradient
                    scratch.sums[i, window + b] += slot_gradient
        if plan.position:
            for i in range(group):
                scratch.sums[i, offset] = row_sums[i]
        for i in places:
            pixels.stage(step, refs.value, scratch.value, first + i)
            _place_mean(refs, scratch, following + i, other + i)
        if plan.content:
            sums = [pixels.numbers(scratch.query_gradient, i) for i in range(group)]
            for column, queries in pixels.pairs(plan):
                key = pixels.numbers(scratch.key, slot, first + column)
                for i, b in queries:
                    weight = scratch.slots[i, b]
                    sums[i] = [x + weight * y for x, y in zip(sums[i], key, strict=True)]
            for i in range(group):
                _store(scratch.query_gradient.at[i], sums[i])
            for i in places:
                pixels.stage(step, refs.key, scratch.key, first + i)
            scattered = scratch.slots, scratch.query
            _scatter(plan, scratch.key_gradient, *scattered, own, gradient_slot, first)
        for i in places:
            pixels.place_query(plan, refs, scratch, following + i, other + i)
        scattered = scratch.weights, scratch.cotangent
        _scatter(plan, scratch.value_gradient, *scattered, own, gradient_slot, first)
        for i in places:
            _place_cotangent(refs, scratch, following + i, other + i)

    if plan.position:
        for i in range(group):
            for b in range(window):
                scratch.sums[i, window + b] = jnp.zeros((SUBLANES, LANES), jnp.float32)
    for i in range(group):
        shape = scratch.query_gradient.shape[1:]
        scratch.query_gradient[i] = jnp.zeros(shape, jnp.float32)

    # On the side, in the gaps of a row's schedule; some of it is done again, which is harmless.
    aside = 2 * group > window
    share = -(-group // window)

    @pl.loop(0, window)
    def _(offset):
        places = [jnp.minimum(share * offset + n, group - 1) for n in range(share)]
        window_row(offset, places if aside else [])

    if not aside:
        for i in range(group):
            pixels.stage(step, refs.value, scratch.value, first + i)
            if plan.content:
                pixels.stage(step, refs.key, scratch.key, first + i)
            _place_query(plan, refs, scratch, following + i, other + i)
    _finish(step, refs, gradients, scratch, first, own)
    for i in range(group):
        _place_bias(step, refs, scratch, following + i, i)


def _finish(
    step: pixels.Step,
    refs: BackwardRefs,
    gradients: Gradients,
    scratch: BackwardScratch,
    first,
    own,
) -> None:
    """From the sums of a group's slots, what tables are owed, and queries for their position."""
    plan = step.plan
    queries = [pixels.numbers(scratch.query, own + i) for i in range(plan.group)]
    query_gradients = [pixels.numbers(scratch.query_gradient, i) for i in range(plan.group)]
    half = plan.dim // 2
    for offset in range(2 * plan.window if plan.position else 0):
        dims = slice(0, half) if offset < plan.window else slice(half, None)
        table = pixels.numbers(refs.spread_table, 0, offset)
        changes = pixels.numbers(gradients.table, 0, 0, offset)
        for i in range(plan.group):
            total, mine = scratch.sums[i, offset], query_gradients[i]
            changes = [x + total * y for x, y in zip(changes, queries[i][dims], strict=True)]
            mine[dims] = [x + total * y for x, y in zip(mine[dims], table, strict=True)]
        _store(gradients.table.at[0, 0, offset], changes)
    for i, mine in enumerate(query_gradients):
        _store(scratch.query_gradient.at[i], mine)
        gradient = pixels.gather(scratch.query_gradient, i) * plan.scale
        scratch.done[_done_slot(step, 0), first + i] = gradient.astype(scratch.done.dtype)


def _place_query(plan: Plan, refs: BackwardRefs, scratch: BackwardScratch, column, i) -> None:
    pixels.place_query(plan, refs, scratch, column, i)
    _place_cotangent(refs, scratch, column, i)
    _place_mean(refs, scratch, column, i)


def _place_cotangent(refs: BackwardRefs, scratch: BackwardScratch, column, i) -> None:
    pixels.spread(refs.cotangent[0, column], scratch.cotangent, i)


def _place_mean(refs: BackwardRefs, scratch: BackwardScratch, column, i) -> None:
    """The product of the output and its cotangent."""
    cotangent, output = (x[0, column].astype(jnp.float32) for x in (refs.cotangent, refs.output))
    pixels.spread(cotangent * output, scratch.product, 0)
    scratch.mean[i] = sum(pixels.numbers(scratch.product, 0))


def _place_bias(
    step: pixels.Step, refs: BackwardRefs, scratch: BackwardScratch, column, i: int
) -> None:
    """Also what takes logits to base-2 logarithms of weights."""
    pixels.place_bias(step, refs, scratch, column, i)
    log_sum_exp = refs.log_sum_exp[0, column] * (1 / LN2)
    for offset in range(step.plan.window):
        bias = scratch.bias[i, offset] if step.plan.biased else 0.0
        scratch.shift[i, offset] = bias - log_sum_exp


def _scatter(plan: Plan, ring, weights, vectors, own, slot, first) -> None:
    """ring[key] += the sum over the group's queries of weight times vector, for one window row."""
    for column, queries in pixels.pairs(plan):
        sums = pixels.numbers(ring, slot, first + column)
        for i, b in queries:
            weight, vector = weights[i, b], pixels.numbers(vectors, own + i)
            sums = [x + weight * y for x, y in zip(sums, vector, strict=True)]
        _store(ring.at[slot, first + column], sums)


def _store(ref, registers: list[jax.Array]) -> None:
    for d, number in enumerate(registers):
        ref[d * SUBLANES : (d + 1) * SUBLANES] = number
