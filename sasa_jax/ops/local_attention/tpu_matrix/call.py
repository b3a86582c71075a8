"""The kernels called from JAX: operands, results, and what is refused."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sasa_jax.ops.local_attention.contract import (
    Inputs,
    Options,
    PackedInputs,
    Problem,
    differentiable,
)
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

IMAGES = kernels.IMAGES
PACKED = "packed"
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
    found = _call(kernels.forward, options, inputs.shape, _operands(inputs), ("output",))
    return found["output"].reshape(inputs.shape), None


def _backward(options: Options, inputs: Inputs, _: None, cotangent: jax.Array) -> Inputs:
    operands = _operands(inputs)
    outputs = tuple(operands)
    operands["cotangent"] = _channels(cotangent)
    found = _call(kernels.backward, options, inputs.shape, operands, outputs)
    images = [found[name].reshape(inputs.query.shape) if name in found else None for name in IMAGES]
    return Inputs(*images, *_table_cotangents(inputs, found))


tpu_matrix = differentiable(_forward, _backward)


def _forward_packed(options: Options, inputs: PackedInputs) -> tuple[jax.Array, None]:
    found = _call(kernels.forward, options, inputs.shape, _packed_operands(inputs), ("output",))
    return found["output"].reshape(inputs.shape), None


def _backward_packed(
    options: Options, inputs: PackedInputs, _: None, cotangent: jax.Array
) -> PackedInputs:
    operands = _packed_operands(inputs)
    outputs = (PACKED, *operands.keys() - set(IMAGES))
    operands["cotangent"] = _channels(cotangent)
    found = _call(kernels.backward, options, inputs.shape, operands, outputs)
    packed = found[PACKED].reshape(inputs.packed.shape)
    return PackedInputs(packed, *_table_cotangents(inputs, found))


_in_place = differentiable(_forward_packed, _backward_packed)


def tpu_matrix_packed(options: Options, inputs: PackedInputs) -> jax.Array:
    """In place, where a group's channels are whole registers and fast memory holds the gradients of
    all groups; else taken apart."""
    geo = Geometry.of(options, inputs.shape)
    groups, dtype = inputs.shape[3] // geo.heads, inputs.packed.dtype
    needed = _memory(geo, dtype, kernels.backward_scratch(geo, dtype), groups) + COMPILER_MEMORY
    if geo.lanes % LANES or needed > fast_memory():
        return tpu_matrix(options, inputs.unpacked())
    return _in_place(options, inputs)


def _operands(inputs: Inputs) -> dict[str, jax.Array]:
    """What there is of the images, [B, H, W, C], and the table, [2 x offsets, C]."""
    images = zip(IMAGES, inputs, strict=False)
    images = {name: _channels(image) for name, image in images if image is not None}
    return images | _tables(inputs)


def _packed_operands(inputs: PackedInputs) -> dict[str, jax.Array]:
    """The same array thrice, and the table."""
    return dict.fromkeys(IMAGES, _channels(inputs.packed)) | _tables(inputs)


def _tables(inputs: Inputs | PackedInputs) -> dict[str, jax.Array]:
    if inputs.row_embedding is None:
        return {}
    heads = inputs[0].shape[-2]
    return {"table": _table(heads, inputs.row_embedding, inputs.column_embedding)}


def _table_cotangents(
    inputs: Inputs | PackedInputs, found: dict[str, jax.Array]
) -> tuple[jax.Array | None, jax.Array | None]:
    if "table" not in found:
        return None, None
    tables = inputs.row_embedding, inputs.column_embedding
    _, transpose = jax.vjp(partial(_table, inputs[0].shape[-2]), *tables)
    return transpose(found["table"].astype(inputs[0].dtype))


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
    shape: tuple[int, int, int, int, int],
    operands: dict[str, jax.Array],
    outputs: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Runs a kernel for all images and groups of heads; off TPU, in Pallas' interpreter.

    Images are [B, H, W, C], for queries [B, H, W, N, D]; where query, key and value are one array,
    [B, H, W, 3 C], as is the output "packed", their cotangents. The output "table" is the sum over
    the batch, float32.
    """

    def run(busy: int, interpret: bool, operands: dict[str, jax.Array]) -> dict[str, jax.Array]:
        geo = Geometry.of(options, shape, busy)
        batch = shape[0]
        rest = -batch % geo.images
        if rest:
            pad = ((0, rest), (0, 0), (0, 0), (0, 0))
            operands = {n: x if n == "table" else jnp.pad(x, pad) for n, x in operands.items()}
        found = _run(kernel, geo, shape[3] * shape[4], operands, outputs, interpret)
        return {n: x.sum(axis=0) if n == "table" else x[:batch] for n, x in found.items()}

    return jax.lax.platform_dependent(
        operands,
        tpu=partial(run, BUSY, False),
        default=partial(run, BUSY_INTERPRETED, True),
    )


def _run(
    kernel: Callable,
    geo: Geometry,
    channels: int,
    operands: dict[str, jax.Array],
    outputs: tuple[str, ...],
    interpret: bool,
) -> dict[str, jax.Array]:
    """For C channels a batch that is a multiple of `geo.images`; "table" comes out for each grid
    step over it."""
    query = operands["query"]
    batch, height, width, _ = query.shape
    groups = channels // geo.lanes
    grid = (batch // geo.images, groups)
    rows = 2 * geo.offsets
    block = geo.images, height, width

    def image(name: str) -> pl.BlockSpec:
        packed = name in operands and operands[name].shape[-1] != channels
        place = IMAGES.index(name) * groups if packed else 0
        return pl.BlockSpec((*block, geo.lanes), lambda b, g: (b, 0, 0, place + g))

    specs = {name: image(name) for name in operands}
    out_specs = {name: image(name) for name in outputs}
    shapes = {name: result(query, (*query.shape[:3], channels), query.dtype) for name in outputs}
    if "table" in operands:
        specs["table"] = pl.BlockSpec((rows, geo.lanes), lambda b, g: (0, g))
    if "table" in outputs:
        out_specs["table"] = pl.BlockSpec((1, rows, geo.lanes), lambda b, g: (b, 0, g))
        shapes["table"] = result(query, (grid[0], rows, channels), jnp.float32)
    if PACKED in outputs:  # all groups write to one block
        out_specs[PACKED] = pl.BlockSpec((*block, query.shape[-1]), lambda b, g: (b, 0, 0, 0))
        shapes[PACKED] = result(query, query.shape, query.dtype)

    scratch = kernels.SCRATCH[kernel](geo, query.dtype)
    memory = _memory(geo, query.dtype, scratch, groups if PACKED in outputs else 1)
    return pl.pallas_call(
        partial(kernel, geo),
        grid=grid,
        in_specs=[specs],
        out_specs=out_specs,
        out_shape=shapes,
        scratch_shapes=[{name: pltpu.VMEM(*spec) for name, spec in scratch.items()}],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if PACKED in outputs else "parallel"),
            vmem_limit_bytes=memory + COMPILER_MEMORY,
        ),
        interpret=interpret,
        name=f"local_attention_{kernel.__name__}",
    )(operands)


def _memory(geo: Geometry, dtype: jnp.dtype, scratch: kernels.Scratch, groups: int = 1) -> int:
    """Bytes of fast memory: the scratch, and twice the blocks of the backward pass' 7 images, the
    last 3 of which are of all groups where they are packed."""

    def size(shape: tuple[int, ...], dtype: jnp.dtype) -> int:
        *lead, rows, lanes = shape
        tile = 32 // jnp.dtype(dtype).itemsize  # rows that the compiler pads to
        rows, lanes = -(-rows // tile) * tile, -(-lanes // LANES) * LANES
        return math.prod(lead) * rows * lanes * jnp.dtype(dtype).itemsize

    block = (geo.images, geo.height, geo.width, geo.lanes)
    return sum(size(*spec) for spec in scratch.values()) + 2 * (4 + 3 * groups) * size(block, dtype)
