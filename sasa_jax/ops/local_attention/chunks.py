"""Cut a few images at a time into blocks, attend, and put the results together again.

A few at a time, so that temporary memory does not grow with the batch. Within a chunk everything is
in the softmax' dtype; what leaves it is in the inputs' own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sasa_jax.ops.local_attention import blocks as core
from sasa_jax.ops.local_attention.blocks import Blocks
from sasa_jax.ops.local_attention.contract import Inputs, Options, differentiable
from sasa_jax.ops.local_attention.definition import softmax_dtype


class Cutting(NamedTuple):
    """How the maps of one call are cut into blocks.

    cut: the inputs of some images to their blocks. Copying and small products: JAX transposes it.
    to_queries: [B, H, W, N, C] to [..., a*b, C], the order in which the blocks hold queries.
    to_image: the inverse of `to_queries`.
    numbers_per_image: the temporary memory that one image takes, in numbers.
    """

    cut: Callable[[Inputs], Blocks]
    to_queries: Callable[[jax.Array], jax.Array]
    to_image: Callable[[jax.Array], jax.Array]
    numbers_per_image: int


def blockwise(
    cutting: Callable[[Options, Inputs], Cutting],
) -> Callable[[Options, Inputs], jax.Array]:
    """Attention by blocks, with its gradient; `cutting` looks at the inputs' shapes alone."""

    def forward(options: Options, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        form = cutting(options, inputs)

        def chunk(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
            output, log_sum_exp = core.forward(form.cut(inputs))
            return form.to_image(output), form.to_image(log_sum_exp[..., None])[..., 0]

        return map_forward(chunk, _chunk_size(form, inputs), inputs)

    def backward(
        options: Options, inputs: Inputs, log_sum_exp: jax.Array, cotangent: jax.Array
    ) -> Inputs:
        form = cutting(options, inputs)

        def chunk(inputs: Inputs, *images: jax.Array) -> Inputs:
            blocks, uncut = jax.vjp(form.cut, inputs)
            log_sum_exp, cotangent = map(form.to_queries, images)
            return uncut(core.backward(blocks, log_sum_exp[..., 0], cotangent))[0]

        images = (log_sum_exp[..., None], cotangent)
        return map_backward(chunk, _chunk_size(form, inputs), inputs, *images)

    return differentiable(forward, backward)


def _chunk_size(form: Cutting, inputs: Inputs) -> int:
    itemsize = softmax_dtype(inputs.query.dtype).itemsize
    return chunk_size(inputs.query.shape[0], form.numbers_per_image * itemsize)


def chunk_size(batch: int, bytes_per_image: int, limit: int = 2**22) -> int:
    """The largest divisor of `batch` whose images stay within `limit` bytes; 1 at least."""
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
