"""The kernels of block attention on a TPU: the blocks of an image lie side by side on the lanes.

A grid step has the blocks of one image, or a part of them, and works on 128 at a time, a tile. A
block is a column of 48 numbers: its 16 pixels, channel by channel. What is linear is left to the
matrix unit. `linear` takes a column to the relative logits and to x_i W_Q W_K^T, for all queries
and heads at once; `values` takes the weighted pixels of two heads to their outputs.

What is read past an image's last block is made zero, so that it adds nothing to any gradient, and
is kept out of the sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LANES, PIXELS, CHANNELS = 128, 16, 3
COLUMN = CHANNELS * PIXELS


@dataclass(frozen=True)
class Plan:
    """The static shape of one call, padded to what the kernels work on."""

    blocks: int  # of an image, not padded
    tiles: int  # in a grid step
    heads: int  # even
    dim: int  # of one head, a multiple of 8
    relative: bool
    unroll: int  # queries side by side in the schedule

    @property
    def features(self) -> int:
        return self.heads * self.dim

    @property
    def biases(self) -> int:
        """Rows of `linear` with relative logits: query by query, head by head, key by key."""
        return PIXELS * self.heads * PIXELS if self.relative else 0

    @property
    def rows(self) -> int:
        """Of `linear`: the relative logits, then x_i W_Q W_K^T query by query, head by head."""
        return self.biases + PIXELS * self.heads * CHANNELS


class ForwardRefs(NamedTuple):
    """image: [1, 48, blocks]. linear: [rows, 48]. values: [N / 2, 2 D, 96]. centre: [C, 128]."""

    image: Any
    linear: Any
    values: Any
    centre: Any


class Found(NamedTuple):
    """best: [1, C, blocks], the maximum over pixels. winner: the first pixel that has it, int8.

    sums: [1, 1, 2, C, 128], float32, over pixels and tiles: of y - centre and of its square.
    """

    best: Any
    winner: Any
    sums: Any


class BackwardRefs(NamedTuple):
    """As in the forward pass; `turned` stands for transposed.

    best: the cotangent of the forward pass' `best`. share: [1, 2, C, 128], float32; the sums give
    every pixel the cotangent share[0] + share[1] y.
    """

    image: Any
    linear: Any
    linear_turned: Any
    values: Any
    values_turned: Any
    winner: Any
    best: Any
    share: Any


class Gradients(NamedTuple):
    """Those that are asked for, the others None.

    image: [1, 48, blocks]. linear: [1, 1, 48, rows], float32, transposed, of one grid step.
    values: [1, 1, N / 2, 2 D, 96], float32, of one grid step.
    """

    image: Any
    linear: Any
    values: Any


class Scratch(NamedTuple):
    """Of one tile, its pixels side by side: [..., 16 * 128].

    linear: [rows, 128], float32, the product. weighted: [N / 2, 96, ...], weight times pixel, in
    the image's dtype. output: [C, ...], float32.
    """

    linear: Any
    weighted: Any
    output: Any


class BackwardScratch(NamedTuple):
    """As in the forward pass, and

    weights: [N, 16 keys, ...], float32. cotangent: [C, ...], of the output, in the image's dtype.
    of_weighted: [N / 2, 96, ...], float32. of_linear: [rows, 128], float32. of_image: [48, 128],
    float32. of_values: as in `Gradients`.
    """

    linear: Any
    weighted: Any
    output: Any
    weights: Any
    cotangent: Any
    of_weighted: Any
    of_linear: Any
    of_image: Any
    of_values: Any


def forward_kernel(plan: Plan, refs: ForwardRefs, found: Found, scratch: Scratch) -> None:
    found.sums[...] = jnp.zeros_like(found.sums)
    first = pl.program_id(1) * (plan.tiles * LANES)

    @pl.loop(0, plan.tiles)
    def _(tile):
        lanes = _lanes(tile)
        image = _inside(plan, first + tile * LANES, refs.image[0, :, lanes])
        _attend(plan, refs, scratch, image, lambda *_: None)
        for start in range(0, plan.features, PIXELS):
            rows = slice(start, start + PIXELS)
            outputs = [scratch.output[rows, _lanes(i)] for i in range(PIXELS)]
            best, winner = _first_maximum(outputs)
            found.best[0, rows, lanes] = best.astype(found.best.dtype)
            found.winner[0, rows, lanes] = winner.astype(found.winner.dtype)
            centred = [y - refs.centre[rows] for y in outputs]
            for k, total in enumerate((sum(centred), sum(y * y for y in centred))):
                found.sums[0, 0, k, rows] += _inside(plan, first + tile * LANES, total)


def backward_kernel(
    plan: Plan, refs: BackwardRefs, gradients: Gradients, scratch: BackwardScratch
) -> None:
    """The parameters' gradients or the image's, whichever there is room for in `gradients`."""
    first = pl.program_id(1) * (plan.tiles * LANES)
    parameters = gradients.image is None
    if parameters:
        for ref in (gradients.linear, scratch.of_values):
            ref[...] = jnp.zeros_like(ref)

    @pl.loop(0, plan.tiles)
    def _(tile):
        lanes = _lanes(tile)
        image = _inside(plan, first + tile * LANES, refs.image[0, :, lanes])

        def keep(i, head: int, weights: jax.Array) -> None:
            scratch.weights[head, :, _lanes(i)] = weights

        _attend(plan, refs, scratch, image, keep)
        winner = refs.winner[0, :, lanes].astype(jnp.int32)
        best = _inside(plan, first + tile * LANES, refs.best[0, :, lanes].astype(jnp.float32))
        for i in range(PIXELS):
            own = _lanes(i)
            of_sums = refs.share[0, 0] + refs.share[0, 1] * scratch.output[:, own]
            cotangent = jnp.where(winner == i, best, 0.0) + of_sums
            scratch.cotangent[:, own] = cotangent.astype(image.dtype)
        for pair in range(plan.heads // 2):
            cotangent = scratch.cotangent[_features(plan, pair)]
            scratch.of_weighted[pair] = _product(refs.values_turned[pair], cotangent)
        if not parameters:
            scratch.of_image[...] = jnp.zeros_like(scratch.of_image)
        channels = _split(image.astype(jnp.float32), PIXELS)

        @pl.loop(0, PIXELS, unroll=plan.unroll)
        def _(i):
            for head in range(plan.heads):
                _of_logits(plan, scratch, channels, i, head, parameters)

        change = scratch.of_linear[...].astype(image.dtype)
        if parameters:
            for pair in range(plan.heads // 2):  # only now: beside it the loop's work is done
                cotangent = scratch.cotangent[_features(plan, pair)]
                scratch.of_values[pair] += _product(cotangent, scratch.weighted[pair], (1, 1))
            gradients.linear[0, 0] += _product(image, change, (1, 1))
        else:
            total = scratch.of_image[...] + _product(refs.linear_turned[...], change)
            gradients.image[0, :, lanes] = total.astype(gradients.image.dtype)

    if parameters:
        gradients.values[0, 0] = scratch.of_values[...]


def _attend(plan: Plan, refs, scratch, image: jax.Array, keep: Callable) -> None:
    """Fills `linear`, `weighted` and `output` from a tile [48, 128].

    `keep(query, head, weights)` is called with weights [16 keys, 128].
    """
    channels = _split(image.astype(jnp.float32), PIXELS)
    # In four parts: the matrix unit is four, and one product goes to one of them.
    part = pl.cdiv(plan.rows, 4 * PIXELS) * PIXELS
    for start in range(0, plan.rows, part):
        rows = slice(start, min(start + part, plan.rows))
        scratch.linear[rows] = _product(refs.linear[rows], image)

    @pl.loop(0, PIXELS, unroll=plan.unroll)
    def _(i):
        for head in range(plan.heads):
            weights = _weights(plan, scratch.linear, channels, i, head)
            keep(i, head, weights)
            weighted = jnp.concatenate([weights * x for x in channels])
            scratch.weighted[head // 2, _column(head), _lanes(i)] = weighted.astype(image.dtype)

    for pair in range(plan.heads // 2):
        scratch.output[_features(plan, pair)] = _product(refs.values[pair], scratch.weighted[pair])


def _of_logits(
    plan: Plan,
    scratch: BackwardScratch,
    channels: list[jax.Array],
    i,
    head: int,
    parameters: bool,
) -> None:
    """From the cotangent of weight times pixel those of what made the logits."""
    own = _lanes(i)
    weights = scratch.weights[head, :, own]
    change = _split(scratch.of_weighted[head // 2, _column(head), own], PIXELS)
    slot = sum(x * y for x, y in zip(channels, change, strict=True))
    logit = weights * (slot - (weights * slot).sum(axis=0, keepdims=True))
    if plan.relative:
        scratch.of_linear[_biases(plan, i, head)] = logit
    for c, x in enumerate(channels):
        row = _query_row(plan, i, head, c)
        scratch.of_linear[row] = (logit * x).sum(axis=0, keepdims=True)
        if not parameters:
            pixels = slice(c * PIXELS, (c + 1) * PIXELS)
            scratch.of_image[pixels] += weights * change[c] + logit * scratch.linear[row]


def _weights(plan: Plan, linear_ref, channels: list[jax.Array], i, head: int) -> jax.Array:
    """Of query i over the keys, [16, 128]."""
    logits = linear_ref[_biases(plan, i, head)] if plan.relative else 0.0
    for c, x in enumerate(channels):
        logits = logits + linear_ref[_query_row(plan, i, head, c)] * x
    powers = jnp.exp(logits - logits.max(axis=0, keepdims=True))
    return powers * (1 / powers.sum(axis=0, keepdims=True))


def _inside(plan: Plan, first, x: jax.Array) -> jax.Array:
    """x, [..., 128], from the image's block `first` on, and zeros for blocks past its last."""
    if plan.blocks % (plan.tiles * LANES) == 0:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(first + lane < plan.blocks, x, jnp.zeros_like(x))


def _first_maximum(outputs: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    best, winner = outputs[0], jnp.zeros(outputs[0].shape, jnp.int32)
    for i, y in enumerate(outputs[1:], start=1):
        winner = jnp.where(y > best, i, winner)
        best = jnp.maximum(best, y)
    return best, winner


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    """On the matrix unit, summed in float32; float32 factors are not rounded to bfloat16."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _split(x: jax.Array, rows: int) -> list[jax.Array]:
    return [x[start : start + rows] for start in range(0, x.shape[0], rows)]


def _lanes(tile) -> pl.Slice:
    start = tile * LANES
    return pl.ds(start if isinstance(tile, int) else pl.multiple_of(start, LANES), LANES)


def _column(head: int) -> slice:
    """Of a head within its pair."""
    return slice(head % 2 * COLUMN, (head % 2 + 1) * COLUMN)


def _features(plan: Plan, pair: int) -> slice:
    return slice(2 * pair * plan.dim, 2 * (pair + 1) * plan.dim)


def _biases(plan: Plan, i, head: int) -> pl.Slice:
    return pl.ds(pl.multiple_of((i * plan.heads + head) * PIXELS, PIXELS), PIXELS)


def _query_row(plan: Plan, i, head: int, channel: int) -> pl.Slice:
    return pl.ds(plan.biases + (i * plan.heads + head) * CHANNELS + channel, 1)
