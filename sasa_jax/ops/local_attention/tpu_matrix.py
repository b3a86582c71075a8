"""Local attention on the matrix units of a TPU, written in Pallas; it serves any batch size.

Images stay as the network has them, channels on lanes. A grid step has one image (several small
ones) in fast memory, for one group of 128 channels, and goes through its tiles (tpu_tiles.py).

Every product runs at the same cost for head dimensions of 8 to 64, since the heads of a group are
stacked. Between the passes nothing is saved but the inputs: the backward pass makes the softmax
again. Sums run in a fixed order.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sasa_jax.ops.local_attention.contract import Inputs, Options, Problem
from sasa_jax.ops.local_attention.tpu_tiles import (
    LANES,
    Geometry,
    Place,
    Tiles,
    clear,
    dot,
    pipeline,
    read,
    slots,
    tables,
    write,
)

DTYPES = ("float32", "bfloat16")
IMAGES = ("query", "key", "value")
# Of fast memory, for a grid step. v5p has 64 MiB, v5e and v6e have 128.
MEMORY_LIMIT = 60 * 2**20


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot run a problem; None when it can."""
    dtype = problem.dtype
    if dtype.name not in DTYPES:
        return f"dtype {dtype.name}; it takes {' and '.join(DTYPES)}"
    geo = Geometry.of(problem.options, problem.shape)
    needed = _memory(geo, dtype, _backward_scratch(geo, dtype))
    if needed > MEMORY_LIMIT:
        return (
            f"a map of {geo.height}x{geo.width} needs {needed / 2**20:.0f} MiB of fast memory, "
            f"more than {MEMORY_LIMIT / 2**20:.0f}"
        )
    return None


def forward(options: Options, inputs: Inputs, *, interpret: bool) -> jax.Array:
    """The output, [B, H, W, N, D]."""
    geo = Geometry.of(options, inputs.query.shape)
    found = _call(
        partial(_forward_kernel, geo),
        geo,
        _operands(geo, inputs),
        outputs=("output",),
        scratch=_forward_scratch(geo, inputs.query.dtype),
        name="local_attention_forward",
        interpret=interpret,
    )
    return found["output"].reshape(inputs.query.shape)


def backward(options: Options, inputs: Inputs, cotangent: jax.Array, *, interpret: bool) -> Inputs:
    """The inputs' cotangents, in their dtypes."""
    geo = Geometry.of(options, inputs.query.shape)
    operands = _operands(geo, inputs)
    found = _call(
        partial(_backward_kernel, geo),
        geo,
        operands | {"cotangent": _channels(cotangent)},
        outputs=tuple(operands),
        scratch=_backward_scratch(geo, inputs.query.dtype),
        name="local_attention_backward",
        interpret=interpret,
    )
    images = [found[name].reshape(inputs.query.shape) if name in found else None for name in IMAGES]
    if "table" not in found:
        return Inputs(*images, None, None)
    table = found["table"].sum(axis=0).astype(inputs.query.dtype)
    _, transpose = jax.vjp(lambda *pair: tables(geo, Inputs(*inputs[:3], *pair)), *inputs[3:])
    return Inputs(*images, *transpose(table))


def _operands(geo: Geometry, inputs: Inputs) -> dict[str, jax.Array]:
    """What there is of the images, [B, H, W, C], and the table, [2 x offsets, C]."""
    operands = {name: _channels(x) for name, x in zip(IMAGES, inputs, strict=False) if x is not None}
    if inputs.row_embedding is not None:
        operands["table"] = tables(geo, inputs)
    return operands


def _channels(image: jax.Array) -> jax.Array:
    return image.reshape(*image.shape[:3], -1)


def _call(
    kernel: Callable,
    geo: Geometry,
    operands: dict[str, jax.Array],
    outputs: tuple[str, ...],
    scratch: dict[str, tuple],
    name: str,
    interpret: bool,
) -> dict[str, jax.Array]:
    """Runs a kernel over images and groups of heads: images [B, H, W, C] in and out.

    The output "table" is one for each grid step over the images, [steps, 2 x offsets, C], float32.
    """
    batch, height, width, channels = operands["query"].shape
    dtype = operands["query"].dtype
    steps = -(-batch // geo.images)
    rest = steps * geo.images - batch
    rows = 2 * geo.offsets
    image = pl.BlockSpec((geo.images, height, width, geo.lanes), lambda b, g: (b, 0, 0, g))
    table = pl.BlockSpec((rows, geo.lanes), lambda b, g: (0, g))
    table_out = pl.BlockSpec((1, rows, geo.lanes), lambda b, g: (b, 0, g))
    images_out = jax.ShapeDtypeStruct((batch + rest, height, width, channels), dtype)
    tables_out = jax.ShapeDtypeStruct((steps, rows, channels), jnp.float32)
    padded = {
        name: x if name == "table" else jnp.pad(x, ((0, rest), (0, 0), (0, 0), (0, 0)))
        for name, x in operands.items()
    }
    found = pl.pallas_call(
        kernel,
        grid=(steps, channels // geo.lanes),
        in_specs=[{name: table if name == "table" else image for name in operands}],
        out_specs={name: table_out if name == "table" else image for name in outputs},
        out_shape={name: tables_out if name == "table" else images_out for name in outputs},
        scratch_shapes=[{name: pltpu.VMEM(*spec) for name, spec in scratch.items()}],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=_memory(geo, dtype, scratch) + 8 * 2**20,
        ),
        interpret=interpret,
        name=name,
    )(padded)
    return {name: x if name == "table" else x[:batch] for name, x in found.items()}


def _memory(geo: Geometry, dtype: jnp.dtype, scratch: dict[str, tuple]) -> int:
    """Bytes of fast memory: the scratch, and twice the blocks of the backward pass' 7 images."""

    def size(shape: tuple[int, ...], dtype: jnp.dtype) -> int:
        *lead, rows, lanes = shape
        itemsize = jnp.dtype(dtype).itemsize
        rows, lanes = -(-rows * itemsize // 32) * 32, -(-lanes // LANES) * LANES
        return math.prod(lead) * rows * lanes

    block = (geo.images, geo.height, geo.width, geo.lanes)
    return sum(size(*spec) for spec in scratch.values()) + 2 * 7 * size(block, dtype)


def _forward_scratch(geo: Geometry, dtype: jnp.dtype) -> dict[str, tuple]:
    """Shapes and dtypes. Maps are float32, whose tiles may begin at any multiple of 8 columns."""
    square = (slots(geo), geo.keys, geo.stacked)
    return {
        "query": (geo.query_map, jnp.float32),
        "key": (geo.key_map, jnp.float32),
        "value": (geo.key_map, jnp.float32),
        "output": (geo.query_map, jnp.float32),
        "shifts": (Tiles.shifts_shape(geo), jnp.float32),
        "logits": (square, jnp.float32),
        "weights": (square, dtype),
    }


def _backward_scratch(geo: Geometry, dtype: jnp.dtype) -> dict[str, tuple]:
    square = (slots(geo), geo.keys, geo.stacked)
    return {
        "query": (geo.query_map, jnp.float32),
        "key": (geo.key_map, jnp.float32),
        "value": (geo.key_map, jnp.float32),
        "cotangent": (geo.query_map, jnp.float32),
        "query_cotangent": (geo.query_map, jnp.float32),
        "key_cotangent": (geo.key_map, jnp.float32),
        "value_cotangent": (geo.key_map, jnp.float32),
        "shifts": (Tiles.shifts_shape(geo), jnp.float32),
        "logits": (square, jnp.float32),
        "weights_cotangent": (square, jnp.float32),
        "weights": (square, dtype),
        "logits_cotangent": (square, dtype),
    }


def _read(geo: Geometry, operands: dict[str, jax.Ref], scratch: dict[str, jax.Ref]) -> None:
    """Copies the blocks into their maps."""
    reach = geo.options.window // 2
    for name in operands:
        if name != "table":
            read(geo, operands[name], scratch[name], reach if name in ("key", "value") else 0)


def _forward_kernel(
    geo: Geometry, operands: dict[str, jax.Ref], outputs: dict[str, jax.Ref], scratch: dict
) -> None:
    dtype = operands["query"].dtype
    table = operands["table"][...] if "table" in operands else None
    tiles = Tiles(geo, dtype, scratch["shifts"])
    _read(geo, operands, scratch)

    def logits(place: Place) -> None:
        query = tiles.stack(scratch["query"][place.queries(geo)])
        key = tiles.keys(scratch["key"], place) if "key" in operands else None
        scratch["logits"][place.slot] = tiles.logits(place, query, key, table)

    def softmax(place: Place) -> None:
        scratch["weights"][place.slot] = _softmax(scratch["logits"][place.slot]).astype(dtype)

    def output(place: Place) -> None:
        weights = scratch["weights"][place.slot]
        stacked = dot(weights, tiles.keys(scratch["value"], place), (0, 0), dtype)
        scratch["output"][place.queries(geo)] = tiles.unstack(stacked)

    pipeline(geo, logits, softmax, output)
    write(geo, scratch["output"], outputs["output"])


def _softmax(logits: jax.Array) -> jax.Array:
    """Over the rows."""
    weights = jnp.exp(logits - logits.max(axis=0, keepdims=True))
    return weights * (1 / weights.sum(axis=0, keepdims=True))


def _backward_kernel(
    geo: Geometry, operands: dict[str, jax.Ref], outputs: dict[str, jax.Ref], scratch: dict
) -> None:
    dtype = operands["query"].dtype
    scale = geo.options.scale
    table = operands["table"][...] if "table" in operands else None
    tiles = Tiles(geo, dtype, scratch["shifts"])
    _read(geo, operands, scratch)
    clear(scratch["key_cotangent"])
    clear(scratch["value_cotangent"])
    if table is not None:
        outputs["table"][...] = jnp.zeros(outputs["table"].shape, jnp.float32)

    def logits(place: Place) -> None:
        query = tiles.stack(scratch["query"][place.queries(geo)])
        key = tiles.keys(scratch["key"], place) if "key" in operands else None
        scratch["logits"][place.slot] = tiles.logits(place, query, key, table)
        cotangent = tiles.stack(scratch["cotangent"][place.queries(geo)])
        value = tiles.keys(scratch["value"], place)
        scratch["weights_cotangent"][place.slot] = dot(value, cotangent, (1, 1), dtype)

    def softmax(place: Place) -> None:
        weights = _softmax(scratch["logits"][place.slot])
        cotangent = scratch["weights_cotangent"][place.slot]
        mean = jnp.sum(weights * cotangent, axis=0, keepdims=True)
        logits = weights * (cotangent - mean)
        scratch["weights"][place.slot] = weights.astype(dtype)
        scratch["logits_cotangent"][place.slot] = (
            logits if scale == 1 else logits * scale
        ).astype(dtype)

    def cotangents(place: Place) -> None:
        weights, logits = (scratch[x][place.slot] for x in ("weights", "logits_cotangent"))
        query = tiles.stack(scratch["query"][place.queries(geo)])
        cotangent = tiles.stack(scratch["cotangent"][place.queries(geo)])
        tiles.add(scratch["value_cotangent"], place, dot(weights, cotangent, (1, 0), dtype))
        stacked = jnp.zeros((geo.stacked, geo.lanes), jnp.float32)
        if "key" in operands:
            tiles.add(scratch["key_cotangent"], place, dot(logits, query, (1, 0), dtype))
            stacked += dot(logits, tiles.keys(scratch["key"], place), (0, 0), dtype)
        if table is not None:
            relative = tiles.relative(place, logits)
            outputs["table"][0] += dot(relative, query, (1, 0), dtype)
            stacked += dot(relative, table, (0, 0), dtype)
        scratch["query_cotangent"][place.queries(geo)] = tiles.unstack(stacked)

    pipeline(geo, logits, softmax, cotangents)
    reach = geo.options.window // 2
    write(geo, scratch["query_cotangent"], outputs["query"])
    write(geo, scratch["value_cotangent"], outputs["value"], reach)
    if "key" in operands:
        write(geo, scratch["key_cotangent"], outputs["key"], reach)
