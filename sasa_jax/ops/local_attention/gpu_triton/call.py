"""The kernels called from JAX: operands, results, and what is refused."""

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import (
    Inputs,
    Options,
    PackedInputs,
    Problem,
    differentiable,
)
from sasa_jax.ops.local_attention.gpu_triton.constants import Launch, launch_of
from sasa_jax.ops.local_attention.gpu_triton.launch import call, call_into, unavailable

DTYPES = ("float32", "bfloat16", "float16")
LARGEST_DIM = 64  # above it, a tile's keys and values do not fit into a warp's registers
LARGEST_WINDOW = 15  # its offsets along an axis fill 16 rows of a table
SCALES = (1e-6, 1e6)  # the largest logit is sought before they are scaled
LARGEST_IMAGE = 2**31  # numbers, of three arrays in one: offsets inside an image have 32 bits


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot run a problem, or None."""
    _, height, width, heads, dim = problem.shape
    if problem.dtype.name not in DTYPES:
        return f"dtype {problem.dtype.name}; it takes {', '.join(DTYPES)}"
    if dim > LARGEST_DIM:
        return f"head dimension {dim}; it takes up to {LARGEST_DIM}"
    if not SCALES[0] <= problem.options.scale <= SCALES[1]:
        return f"scale {problem.options.scale:g}; it takes {SCALES[0]:g} to {SCALES[1]:g}"
    if problem.options.window > LARGEST_WINDOW:
        return f"window {problem.options.window}; it takes up to {LARGEST_WINDOW}"
    if (size := 3 * height * width * heads * dim) >= LARGEST_IMAGE:
        return f"images of {size} numbers, query, key and value; it takes fewer than 2^31"
    return unavailable(problem.platform)


def _shape(inputs: Inputs | PackedInputs) -> tuple[int, int, int, int, int]:
    """[B, H, W, N, D] of the query."""
    return (*inputs[0].shape[:3], *inputs[0].shape[-2:])


def _launch(kernel: str, options: Options, inputs: Inputs | PackedInputs) -> Launch:
    tables, packed = inputs.row_embedding is not None, isinstance(inputs, PackedInputs)
    return launch_of(
        kernel,
        options,
        _shape(inputs),
        inputs[0].dtype,
        content=packed or inputs.key is not None,
        tables=tables,
        per_head=tables and inputs.row_embedding.ndim == 3,
        packed=packed,
    )


def _operands(inputs: Inputs | PackedInputs) -> list[jax.Array]:
    """Something for every pointer: what is None is not read."""
    if isinstance(inputs, PackedInputs):
        inputs = Inputs(*[inputs.packed] * 3, inputs.row_embedding, inputs.column_embedding)
    return [inputs.query if x is None else x for x in inputs]


def _forward(options: Options, inputs: Inputs | PackedInputs) -> tuple[jax.Array, jax.Array]:
    batch, height, width, heads, dim = _shape(inputs)
    results = (
        jax.ShapeDtypeStruct((batch, height, width, heads, dim), inputs[0].dtype),
        jax.ShapeDtypeStruct((batch, heads, height, width), jnp.float32),
    )
    return call(_launch("forward", options, inputs), _operands(inputs), results)


def _backward_queries(
    options: Options, inputs: Inputs | PackedInputs, log_sums: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, tuple[jax.Array | None, jax.Array | None]]:
    """Of the first input the gradient, or the query's part of it; deltas; the tables' gradients."""
    launch = _launch("backward_queries", options, inputs)
    tables = inputs.row_embedding is not None
    table = (launch.programs, options.window, launch.group, cotangent.shape[-1]) if tables else (1,)
    query, deltas, table = call(
        launch,
        (*_operands(inputs), log_sums, cotangent),
        (
            jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype),
            jax.ShapeDtypeStruct(log_sums.shape, jnp.float32),
            jax.ShapeDtypeStruct(table, jnp.float32),
        ),
    )
    return query, deltas, _table_gradients(launch, inputs, table) if tables else (None, None)


def _backward(
    options: Options, inputs: Inputs, log_sums: jax.Array, cotangent: jax.Array
) -> Inputs:
    query, deltas, embeddings = _backward_queries(options, inputs, log_sums, cotangent)
    image = jax.ShapeDtypeStruct(cotangent.shape, cotangent.dtype)
    unused = jax.ShapeDtypeStruct((1,), cotangent.dtype)
    key, value = call(
        _launch("backward_keys", options, inputs),
        (*_operands(inputs), log_sums, deltas, cotangent),
        (unused if inputs.key is None else image, image),
    )
    return Inputs(query, None if inputs.key is None else key, value, *embeddings)


def _backward_packed(
    options: Options, inputs: PackedInputs, log_sums: jax.Array, cotangent: jax.Array
) -> PackedInputs:
    """Each kernel writes its part of one gradient."""
    packed, deltas, embeddings = _backward_queries(options, inputs, log_sums, cotangent)
    packed = call_into(
        _launch("backward_keys", options, inputs),
        (*_operands(inputs), log_sums, deltas, cotangent),
        packed,
    )
    return PackedInputs(packed, *embeddings)


gpu_triton = differentiable(_forward, _backward)
gpu_triton_packed = differentiable(_forward, _backward_packed)


def _table_gradients(
    launch: Launch, inputs: Inputs | PackedInputs, partial_sums: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """From those of the programs, [programs, K, heads of one, D]."""
    heads = inputs[0].shape[-2]
    window, group, dim = partial_sums.shape[1:]
    sums = partial_sums.reshape(-1, heads // group, window, group, dim)
    if inputs.row_embedding.ndim == 3:
        table = sums.sum(axis=0).transpose(1, 0, 2, 3).reshape(window, heads, dim)
    else:
        table = sums.sum(axis=(0, 1, 3))
    table = table.astype(inputs.row_embedding.dtype)
    return table[..., : dim // 2], table[..., dim // 2 :]
