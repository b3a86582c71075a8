"""Attend to a few images at a time, and put the results together again.

A few at a time, so that temporary memory does not grow with the batch. Within a chunk everything is
in the softmax' dtype; what leaves it is in the inputs' own.
"""

from collections.abc import Callable
from typing import Any

import jax

from sasa_jax.ops.local_attention.contract import Inputs
from sasa_jax.ops.local_attention.definition import softmax_dtype


def chunk_size(inputs: Inputs, numbers_per_image: int, limit: int = 2**22) -> int:
    """The most images, a divisor of the batch, whose numbers stay within `limit` bytes; or 1."""
    batch = inputs.query.shape[0]
    bytes_per_image = numbers_per_image * softmax_dtype(inputs.query.dtype).itemsize
    fitting = min(batch, max(1, limit // bytes_per_image))
    return max(size for size in range(1, fitting + 1) if batch % size == 0)


def map_forward(
    function: Callable[[Inputs], tuple[jax.Array, jax.Array]], size: int, inputs: Inputs
) -> tuple[jax.Array, jax.Array]:
    """Runs `function`, inputs -> (output, log_sum_exp), on `size` images at a time."""

    def chunk(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        output, log_sum_exp = function(inputs)
        return output.astype(dtype), log_sum_exp

    dtype = inputs.query.dtype
    output, log_sum_exp = _map_images(chunk, size, inputs)
    return _joined(output), _joined(log_sum_exp)


def map_backward(
    function: Callable[..., Inputs], size: int, inputs: Inputs, *images: jax.Array
) -> Inputs:
    """Runs `function`, (inputs, *images) -> cotangents, on `size` images at a time.

    The tables' cotangents are summed over the chunks. `images`: further arrays [B, ...].
    """

    def chunk(inputs: Inputs, *images: jax.Array) -> tuple[tuple, tuple]:
        cotangents = function(inputs, *images)
        return jax.tree.map(lambda x: x.astype(dtype), cotangents[:3]), cotangents[3:]

    dtype = inputs.query.dtype
    image_cotangents, table_cotangents = _map_images(chunk, size, inputs, *images)
    return Inputs(
        *jax.tree.map(_joined, image_cotangents),
        *jax.tree.map(lambda x: x.sum(axis=0).astype(dtype), table_cotangents),
    )


def _map_images(function: Callable[..., Any], size: int, inputs: Inputs, *images: jax.Array) -> Any:
    """The function's trees of each chunk, stacked: each leaf [B / size, ...]."""
    dtype = softmax_dtype(inputs.query.dtype)
    split = jax.tree.map(
        lambda x: x.reshape(-1, size, *x.shape[1:]),
        (inputs.query, inputs.key, inputs.value, *images),
    )

    def one(chunk: tuple) -> Any:
        chunk, tables = jax.tree.map(lambda x: x.astype(dtype), (chunk, inputs[3:]))
        return function(Inputs(*chunk[:3], *tables), *chunk[3:])

    return jax.lax.map(one, split)


def _joined(stacked: jax.Array) -> jax.Array:
    """[chunks, size, ...] to [B, ...]."""
    return stacked.reshape(-1, *stacked.shape[2:])
