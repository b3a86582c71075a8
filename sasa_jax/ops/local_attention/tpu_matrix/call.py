"""The kernels called from JAX: operands, results, and what is refused."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sasa_jax.ops.local_attention.contract import Inputs, Options, Problem, differentiable
from sasa_jax.ops.local_attention.definition import per_head
from sasa_jax.ops.local_attention.tpu_common import DTYPES, fast_memory, result
from sasa_jax.ops.local_attention.tpu_matrix import kernels
from sasa_jax.ops.local_attention.tpu_matrix.geometry import (
    BUSY,
    BUSY_INTERPRETED,
    LANES,
    Geometry,
    up,
)

IMAGES = ("query", "key", "value")
COMPILER_MEMORY = 5 * 2**20  # bytes that the compiler may want beside: spilled registers


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot run a problem, or None."""
    dtype = problem.dtype
    if dtype.name not in DTYPES:
        return f"dtype {dtype.name}; it takes {' and '.join(DTYPES)}"
    geo = Geometry.of(problem.options, problem.shape)
    needed = _memory(geo, dtype, kernels.backward_scratch(geo, dtype)) + COMPILER_MEMORY
    if needed > fast_memory():
        return (
            f"maps of {geo.height}x{geo.width} in {dtype.name} need {needed / 2**20:.0f} MiB of "
            f"fast memory, more than {fast_memory() / 2**20:.0f}"
        )
    return None


def _forward(options: Options, inputs: Inputs) -> tuple[jax.Array, None]:
    found = _call(kernels.forward, options, inputs, _operands(inputs), outputs=("output",))
    return found["output"].reshape(inputs.query.shape), None


def _backward(options: Options, inputs: Inputs, _: None, cotangent: jax.Array) -> Inputs:
    operands = _operands(inputs)
    outputs = tuple(operands)
    operands["cotangent"] = _channels(cotangent)
    found = _call(kernels.backward, options, inputs, operands, outputs)
    images = [found[name].reshape(inputs.query.shape) if name in found else None for name in IMAGES]
    if "table" not in found:
        return Inputs(*images, None, None)
    _, transpose = jax.vjp(partial(_table, inputs.query.shape[3]), *inputs[3:])
    return Inputs(*images, *transpose(found["table"].astype(inputs.query.dtype)))


tpu_matrix = differentiable(_forward, _backward)


def _operands(inputs: Inputs) -> dict[str, jax.Array]:
    """What there is of the images, [B, H, W, C], and the table, [2 x offsets, C]."""
    images = zip(IMAGES, inputs, strict=False)
    operands = {name: _channels(image) for name, image in images if image is not None}
    if inputs.row_embedding is not None:
        operands["table"] = _table(inputs.query.shape[3], *inputs[3:])
    return operands


def _channels(image: jax.Array) -> jax.Array:
    return image.reshape(*image.shape[:3], -1)


def _table(heads: int, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[2 x offsets, C]: the row embeddings on their lanes, then the column embeddings on theirs."""

    def padded(table: jax.Array) -> jax.Array:
        table = table.reshape(table.shape[0], -1)
        return jnp.pad(table, ((0, up(table.shape[0]) - table.shape[0]), (0, 0)))

    rows, columns = per_head(rows, heads), per_head(columns, heads)
    rows = jnp.concatenate([rows, jnp.zeros_like(rows)], axis=-1)
    columns = jnp.concatenate([jnp.zeros_like(columns), columns], axis=-1)
    return jnp.concatenate([padded(rows), padded(columns)])


def _call(
    kernel: Callable,
    options: Options,
    inputs: Inputs,
    operands: dict[str, jax.Array],
    outputs: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Runs a kernel for all images and groups of heads; off TPU, in Pallas' interpreter.

    Images are [B, H, W, C]. The output "table" is the sum over the batch, float32.
    """

    def run(busy: int, interpret: bool, operands: dict[str, jax.Array]) -> dict[str, jax.Array]:
        geo = Geometry.of(options, inputs.query.shape, busy)
        batch = inputs.query.shape[0]
        rest = -batch % geo.images
        if rest:
            pad = ((0, rest), (0, 0), (0, 0), (0, 0))
            operands = {n: x if n == "table" else jnp.pad(x, pad) for n, x in operands.items()}
        found = _run(kernel, geo, operands, outputs, interpret)
        return {n: x.sum(axis=0) if n == "table" else x[:batch] for n, x in found.items()}

    return jax.lax.platform_dependent(
        operands,
        tpu=partial(run, BUSY, False),
        default=partial(run, BUSY_INTERPRETED, True),
    )


def _run(
    kernel: Callable,
    geo: Geometry,
    operands: dict[str, jax.Array],
    outputs: tuple[str, ...],
    interpret: bool,
) -> dict[str, jax.Array]:
    """The batch is a multiple of `geo.images`; "table" comes out for each grid step over it."""
    query = operands["query"]
    batch, height, width, channels = query.shape
    grid = (batch // geo.images, channels // geo.lanes)
    rows = 2 * geo.offsets
    image = pl.BlockSpec((geo.images, height, width, geo.lanes), lambda b, g: (b, 0, 0, g))
    table = pl.BlockSpec((rows, geo.lanes), lambda b, g: (0, g))
    tables = pl.BlockSpec((1, rows, geo.lanes), lambda b, g: (b, 0, g))
    image_out = result(query, query.shape, query.dtype)
    table_out = result(query, (grid[0], rows, channels), jnp.float32)
    scratch = kernels.SCRATCH[kernel](geo, query.dtype)
    return pl.pallas_call(
        partial(kernel, geo),
        grid=grid,
        in_specs=[{name: table if name == "table" else image for name in operands}],
        out_specs={name: tables if name == "table" else image for name in outputs},
        out_shape={name: table_out if name == "table" else image_out for name in outputs},
        scratch_shapes=[{name: pltpu.VMEM(*spec) for name, spec in scratch.items()}],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=_memory(geo, query.dtype, scratch) + COMPILER_MEMORY,
        ),
        interpret=interpret,
        name=f"local_attention_{kernel.__name__}",
    )(operands)


def _memory(geo: Geometry, dtype: jnp.dtype, scratch: kernels.Scratch) -> int:
    """Bytes of fast memory: the scratch, and twice the blocks of the backward pass' 7 images."""

    def size(shape: tuple[int, ...], dtype: jnp.dtype) -> int:
        *lead, rows, lanes = shape
        tile = 32 // jnp.dtype(dtype).itemsize  # rows that the compiler pads to
        rows, lanes = -(-rows // tile) * tile, -(-lanes // LANES) * LANES
        return math.prod(lead) * rows * lanes * jnp.dtype(dtype).itemsize

    block = (geo.images, geo.height, geo.width, geo.lanes)
    return sum(size(*spec) for spec in scratch.values()) + 2 * 7 * size(block, dtype)
