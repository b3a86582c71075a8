"""The fast form of block attention: whether it can run, and the call on one or several devices."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sasa_jax.ops.block_attention.definition import BLOCK
from sasa_jax.ops.block_attention.tpu import best_and_sums
from sasa_jax.ops.devices import batch_mesh, equally_varying, platform
from sasa_jax.ops.local_attention.tpu_common import DTYPES

MAX_HEADS, MAX_FEATURES = 16, 512


class Best(NamedTuple):
    """Of every block the best pixel, and the moments of all pixels.

    value: [B, H/4, W/4, C], in the images' dtype. mean, square: [B, C], float32, over an image's
    pixels: of y - centre and of its square.
    """

    value: jax.Array
    mean: jax.Array
    square: jax.Array


class _Inputs(NamedTuple):
    images: jax.Array
    content: jax.Array
    relative: jax.Array | None
    values: jax.Array
    centre: jax.Array


def best_of_blocks(
    images: jax.Array,
    content: jax.Array,
    relative: jax.Array | None,
    values: jax.Array,
    highest: jax.Array,
    centre: jax.Array,
) -> Best:
    """Attention inside every block, y_i = sum_j p_ij values_j x_j, of which only this is kept.

    For a network that goes on with an affine map, increasing or decreasing channel by channel, and
    a maximum over the block: where `highest` holds that of the block's largest y is the maximum,
    elsewhere that of its smallest. Nothing of 16 pixels a block is stored, nor kept for the
    backward pass, which computes it again.

    Args:
        images: [B, H, W, 3], float32 or bfloat16.
        content, relative: as in `attention_weights`, which gives p; rounded to the images' dtype.
        values: [16, 3, N, D], of the key, its channel, the head and its dims; likewise.
        highest: bool [C], C = N D: the largest y, or else the smallest. Of equal ones the first.
        centre: [C], near the mean of y, so that its variance does not cancel.

    Reverse-mode differentiation once, the images' gradient included; no forward mode. Under a
    context mesh (`jax.set_mesh`) whose axes are all Auto and whose size divides B, each device
    takes its own images. Off TPU the kernels run in Pallas' interpreter, slowly.
    """
    sign = jnp.where(highest, 1, -1)
    *_, heads, dim = values.shape
    inputs = _Inputs(
        images,
        content.astype(images.dtype),
        None if relative is None else relative.astype(images.dtype),
        (values * sign.reshape(1, 1, heads, dim).astype(values.dtype)).astype(images.dtype),
        centre.astype(jnp.float32) * sign.astype(jnp.float32),
    )
    best, moments = _on_devices(batch_mesh(images.shape[0]), platform() != "tpu", inputs)
    mean, square = moments[:, 0], moments[:, 1]
    return Best(
        best * sign.reshape(1, 1, 1, -1).astype(best.dtype),
        mean * sign.reshape(1, -1).astype(mean.dtype),
        square,
    )


@partial(jax.jit, static_argnums=(0, 1))  # so that calls outside jit compile once
def _on_devices(
    mesh: jax.sharding.AbstractMesh | None, interpret: bool, inputs: _Inputs
) -> tuple[jax.Array, jax.Array]:
    """The best [B, H/4, W/4, C], and the moments [B, 2, C]."""

    def run(inputs: _Inputs) -> tuple[jax.Array, jax.Array]:
        return _run(interpret, equally_varying(inputs))

    if mesh is None:
        return run(inputs)
    own, same = P(mesh.axis_names), P()
    specs = _Inputs(own, same, None if inputs.relative is None else same, same, same)
    # Unchecked: Pallas' interpreter does not keep track of what varies over the mesh.
    return jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=(own, own), check_vma=False)(
        inputs
    )


def _run(interpret: bool, inputs: _Inputs) -> tuple[jax.Array, jax.Array]:
    images, content, relative, values, centre = inputs
    batch, height, width, channels = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    blocks = images.reshape(batch, rows, BLOCK, columns, BLOCK, channels)
    blocks = blocks.transpose(0, 5, 2, 4, 1, 3).reshape(batch, -1, rows * columns)
    centre = centre.reshape(values.shape[2:])
    best, sums = best_and_sums(blocks, content, relative, values, centre, interpret=interpret)
    return best.reshape(batch, rows, columns, -1), sums / (height * width)


def refuses(dtype: jnp.dtype, heads: int, features: int) -> str | None:
    """Why `best_of_blocks` cannot run, or None."""
    if jnp.dtype(dtype).name not in DTYPES:
        return f"it takes {' and '.join(DTYPES)}, not {jnp.dtype(dtype).name}"
    if heads > MAX_HEADS or features > MAX_FEATURES:
        return (
            f"it takes up to {MAX_HEADS} heads and {MAX_FEATURES} features, "
            f"not {heads} and {features}"
        )
    return None
