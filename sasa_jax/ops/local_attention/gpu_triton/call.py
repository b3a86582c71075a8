"""The kernels called from JAX: operands, results, and what is refused."""

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import Inputs, Options, Problem, differentiable
from sasa_jax.ops.local_attention.gpu_triton.constants import SLOTS, Launch, launch_of
from sasa_jax.ops.local_attention.gpu_triton.launch import call, unavailable

DTYPES = ("float32", "bfloat16", "float16")
LARGEST_DIM = 64  # above it, a tile's keys and values do not fit into a warp's registers
LARGEST_WINDOW = SLOTS - 1
LARGEST_IMAGE = 2**31  # numbers: offsets inside an image have 32 bits


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot run a problem, or None."""
    _, height, width, heads, dim = problem.shape
    if problem.dtype.name not in DTYPES:
        return f"dtype {problem.dtype.name}; it takes {', '.join(DTYPES)}"
    if dim > LARGEST_DIM:
        return f"head dimension {dim}; it takes up to {LARGEST_DIM}"
    if problem.options.window > LARGEST_WINDOW:
        return f"window {problem.options.window}; it takes up to {LARGEST_WINDOW}"
    if height * width * heads * dim >= LARGEST_IMAGE:
        return f"an image of {height * width * heads * dim} numbers; it takes fewer than 2^31"
    return unavailable(problem.platform)


def _launch(kernel: str, options: Options, inputs: Inputs) -> Launch:
    tables = inputs.row_embedding is not None
    return launch_of(
        kernel,
        options,
        inputs.query.shape,
        inputs.query.dtype,
        content=inputs.key is not None,
        tables=tables,
        per_head=tables and inputs.row_embedding.ndim == 3,
    )


def _operands(inputs: Inputs) -> list[jax.Array]:
    """Something for every pointer: what is None is not read."""
    return [inputs.query if x is None else x for x in inputs]


def _forward(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    batch, height, width, heads, _ = inputs.query.shape
    results = (
        jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
        jax.ShapeDtypeStruct((batch, heads, height, width), jnp.float32),
    )
    return call(_launch("forward", options, inputs), _operands(inputs), results)


def _backward(
    options: Options, inputs: Inputs, log_sums: jax.Array, cotangent: jax.Array
) -> Inputs:
    launch = _launch("backward_queries", options, inputs)
    dtype, tables = cotangent.dtype, inputs.row_embedding is not None
    image, unused = jax.ShapeDtypeStruct(cotangent.shape, dtype), jax.ShapeDtypeStruct((1,), dtype)
    table = (launch.programs, options.window, cotangent.shape[-1]) if tables else (1,)
    query, deltas, table = call(
        launch,
        (*_operands(inputs), log_sums, cotangent),
        (
            image,
            jax.ShapeDtypeStruct(log_sums.shape, jnp.float32),
            jax.ShapeDtypeStruct(table, jnp.float32),
        ),
    )
    key, value = call(
        _launch("backward_keys", options, inputs),
        (*_operands(inputs), log_sums, deltas, cotangent),
        (unused if inputs.key is None else image, image),
    )
    embeddings = _table_gradients(launch, inputs, table) if tables else (None, None)
    return Inputs(query, None if inputs.key is None else key, value, *embeddings)


gpu_triton = differentiable(_forward, _backward)


def _table_gradients(
    launch: Launch, inputs: Inputs, partial_sums: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """From those of the programs, [programs, K, D], whose last index is the group of heads."""
    groups = inputs.query.shape[3] // launch.group
    window, dim = partial_sums.shape[1:]
    sums = partial_sums.reshape(-1, groups, window, dim)
    if inputs.row_embedding.ndim == 3:
        table = sums.sum(axis=0).transpose(1, 0, 2)
    else:
        table = sums.sum(axis=(0, 1))
    table = table.astype(inputs.row_embedding.dtype)
    return table[..., : dim // 2], table[..., dim // 2 :]
