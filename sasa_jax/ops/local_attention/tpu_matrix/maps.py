"""Maps: the images of a grid step in scratch memory, in float32 and with their rim.

In float32, because a tile of 8 columns may then begin at any multiple of 8 whatever the inputs are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.tpu_matrix.geometry import SUBLANES, Geometry


def read(geo: Geometry, block: jax.Ref, scratch: jax.Ref, reach: int) -> None:
    """Copies a block [images, H, W, lanes] into a map, `reach` from its corner, with 0 around."""
    images, rows, columns, lanes = scratch.shape

    def zero(image: jax.Array, row: jax.Array, begin: int, end: int) -> None:
        if begin < end:
            scratch[image, row, begin:end] = jnp.zeros((end - begin, lanes), scratch.dtype)

    def image_row(image: jax.Array, row: jax.Array) -> None:
        zero(image, row + reach, 0, reach)
        zero(image, row + reach, (geo.width + reach) // SUBLANES * SUBLANES, columns)
        inside = block[image, row].astype(scratch.dtype)
        scratch[image, row + reach, reach : reach + geo.width] = inside

    for row in (*range(reach), *range(reach + geo.height, rows)):
        _for_each(images, 1, lambda image, _, row=row: zero(image, row, 0, columns))
    _for_each(images, geo.height, image_row)


def write(geo: Geometry, scratch: jax.Ref, block: jax.Ref, reach: int) -> None:
    """Copies a map's part, `reach` from its corner, into a block [images, H, W, lanes]."""

    def image_row(image: jax.Array, row: jax.Array) -> None:
        columns = scratch[image, row + reach, reach : reach + geo.width]
        block[image, row] = columns.astype(block.dtype)

    _for_each(geo.images, geo.height, image_row)


def clear(scratch: jax.Ref) -> None:
    """Sets a map to 0."""
    images, rows, *shape = scratch.shape

    def image_row(image: jax.Array, row: jax.Array) -> None:
        scratch[image, row] = jnp.zeros(shape, scratch.dtype)

    _for_each(images, rows, image_row)


def _for_each(images: int, rows: int, step: Callable[[jax.Array, jax.Array], None]) -> None:
    """Runs `step` for each row of each image, a few rows in one go."""
    together = max(n for n in range(1, 9) if rows % n == 0)

    def image_rows(image: jax.Array, _: None) -> None:
        def some(index: jax.Array, _: None) -> None:
            for row in range(together):
                step(image, index * together + row)

        jax.lax.fori_loop(0, rows // together, some, None)

    jax.lax.fori_loop(0, images, image_rows, None)
