"""Block and halo: tiles of queries, each with its keys and a rim of K//2 around them.

Plain matrix products, so it runs everywhere. A tile of 4x4 queries meets 10x10 keys for a 7x7
window; what lies outside a query's window gets weight 0. The window's rim is copied, once for all
queries of a tile; logits exist for one chunk of images at a time.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.ops.local_attention import blocks as core
from sasa_jax.ops.local_attention.blocks import OUTSIDE, Blocks
from sasa_jax.ops.local_attention.chunks import Cutting, blockwise
from sasa_jax.ops.local_attention.contract import Inputs, Options


def _cutting(options: Options, inputs: Inputs) -> Cutting:
    _, height, width, heads, dim = inputs.query.shape
    tile = _tile(options, height, width)
    tiles = -(-height // tile[0]) * -(-width // tile[1])
    keys = (tile[0] + options.window - 1) * (tile[1] + options.window - 1)
    return Cutting(
        cut=partial(_cut, options, tile),
        to_queries=partial(_tile_queries, tile=tile),
        to_image=partial(_untile, tile=tile, height=height, width=width),
        # logits, keys, values
        numbers_per_image=tiles * heads * keys * (tile[0] * tile[1] + 2 * dim),
    )


halo = blockwise(_cutting)


def _tile(options: Options, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a tile: little wasted on rims and ragged edges, yet few tiles.

    The cost of a tile: its logits, and an overhead worth about 500 of them (measured on CPU).
    """

    def cost(tile: tuple[int, int]) -> int:
        rows, columns = tile
        logits = rows * columns * (rows + options.window - 1) * (columns + options.window - 1)
        return -(-height // rows) * -(-width // columns) * (logits + 500)

    sides = range(1, 9)
    return min(((r, c) for r in sides if r <= height for c in sides if c <= width), key=cost)


def _cut(options: Options, tile: tuple[int, int], inputs: Inputs) -> Blocks:
    """Blocks over the axes (B, tile rows, tile columns, N)."""
    height, width = inputs.query.shape[1:3]
    query = _tile_queries(inputs.query * options.scale, tile)
    square = query.reshape(*query.shape[:4], *tile, query.shape[-1])
    rows, columns = core.relative_logits(options, inputs, square)
    if options.boundary == "mask":
        outside_rows = _outside(height, tile[0], options.window).astype(rows.dtype)
        outside_columns = _outside(width, tile[1], options.window).astype(rows.dtype)
        rows += outside_rows[None, :, None, None, None, None, :]
        columns += outside_columns[None, None, :, None, None, None, :]
    key, value = (
        None if x is None else _tile_keys(x, tile, options.window)
        for x in (inputs.key, inputs.value)
    )
    return Blocks(query, key, value, rows, columns, padding=None)


def _tile_queries(image: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """[B, H, W, N, D] to [B, tile rows, tile columns, N, a*b, D]; ragged edges hold zeros."""
    batch, height, width, heads, dim = image.shape
    rows, columns = -(-height // tile[0]), -(-width // tile[1])
    ragged = ((0, rows * tile[0] - height), (0, columns * tile[1] - width))
    image = jnp.pad(image, ((0, 0), *ragged, (0, 0), (0, 0)))
    image = image.reshape(batch, rows, tile[0], columns, tile[1], heads, dim)
    image = image.transpose(0, 1, 3, 5, 2, 4, 6)
    return image.reshape(batch, rows, columns, heads, tile[0] * tile[1], dim)


def _untile(tiles: jax.Array, tile: tuple[int, int], height: int, width: int) -> jax.Array:
    """The inverse of `_tile_queries`."""
    batch, rows, columns, heads, _, dim = tiles.shape
    tiles = tiles.reshape(batch, rows, columns, heads, *tile, dim).transpose(0, 1, 4, 2, 5, 3, 6)
    image = tiles.reshape(batch, rows * tile[0], columns * tile[1], heads, dim)
    return image[:, :height, :width]


def _tile_keys(image: jax.Array, tile: tuple[int, int], window: int) -> jax.Array:
    """[B, H, W, N, D] to [B, tile rows, tile columns, N, D, u*v], each tile with its rim.

    Whole tiles are laid side by side, so that nothing is gathered and the transpose needs no
    scatter; rows come last, so that what is copied then is contiguous.
    """
    image = _split(image.transpose(0, 3, 4, 1, 2), 4, tile[1], window)
    image = _overlap(image, 4, 5, window)  # [B, N, D, H, tile columns, v]
    image = _split(image, 3, tile[0], window).transpose(0, 3, 5, 1, 2, 4, 6)
    image = _overlap(image, 1, 5, window)  # [B, tile rows, tile columns, N, D, u, v]
    return image.reshape(*image.shape[:5], -1)


def _split(image: jax.Array, axis: int, tile: int, window: int) -> jax.Array:
    """Pads an axis with zeros, K//2 of them before, and splits it into (tiles + rim, tile)."""
    tiles, rim = -(-image.shape[axis] // tile), -(-(window - 1) // tile)
    padding = [(0, 0)] * image.ndim
    padding[axis] = (window // 2, (tiles + rim) * tile - image.shape[axis] - window // 2)
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), [(*ends, 0) for ends in padding])
    return image.reshape(*image.shape[:axis], -1, tile, *image.shape[axis + 1 :])


def _overlap(image: jax.Array, tiles: int, within: int, window: int) -> jax.Array:
    """Puts behind each tile what follows it, along the axis `within`: tile to tile + K - 1."""
    tile = image.shape[within]
    rim = -(-(window - 1) // tile)
    count = image.shape[tiles] - rim
    parts = []
    for step in range(rim + 1):
        part = jax.lax.slice_in_dim(image, step, step + count, axis=tiles)
        size = min(tile, tile + window - 1 - step * tile)
        parts.append(jax.lax.slice_in_dim(part, 0, size, axis=within))
    return jnp.concatenate(parts, axis=within)


def _outside(length: int, tile: int, window: int) -> np.ndarray:
    """[tiles, tile + K - 1]: `OUTSIDE` for keys beyond the image, 0 for others."""
    first = np.arange(0, length, tile)[:, None] - window // 2
    place = first + np.arange(tile + window - 1)[None]
    return np.where((place >= 0) & (place < length), 0.0, OUTSIDE)
