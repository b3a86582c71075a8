"""Tiles of the matrix-unit kernel: their order, and the steps that both passes share.

A tile is a x 8 queries and the u x v keys that their windows cover. Its logits stand with the keys
on rows, u-major, and the queries of several heads on columns, [u v, h a 8]: every reduction over
the keys is then one over rows, which costs no lane shuffles.

The heads that share a group of 128 lanes are stacked: each has a copy of the queries in which the
other heads' lanes are 0, so that one product with the keys serves all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sasa_jax.ops.local_attention.contract import OUTSIDE
from sasa_jax.ops.local_attention.tpu_matrix.geometry import COLUMNS, Geometry, up


class Place(NamedTuple):
    """Where a tile stands: its image in the grid step, its first query, its part of the scratch."""

    slot: int
    image: jax.Array | int
    row: jax.Array
    column: int

    def queries(self, geo: Geometry) -> tuple:
        """The index of the tile's queries in a query map, [a, 8, lanes]."""
        return self.image, pl.ds(self.row, geo.rows), pl.ds(self.column, COLUMNS)

    def keys(self, geo: Geometry) -> tuple:
        """The index of the tile's keys in a key map, [u, v, lanes]."""
        return self.image, pl.ds(self.row, geo.key_rows), pl.ds(self.column, geo.key_columns)


def pipeline(
    geo: Geometry,
    first: Callable[[Place], None],
    second: Callable[[Place], None],
    third: Callable[[Place], None],
    *,
    ahead: tuple[int, int],
) -> None:
    """Takes every tile of the grid step through three stages.

    The first and second stage are `ahead` of the third by so many tiles, less in a short round. The
    compiler orders instructions much as they are written: written so, the products of some tiles
    overlap with the softmax of others, and nothing waits.
    """
    total, count = geo.images * geo.tile_rows, geo.slots
    ahead = min(ahead[0], count - 1), min(ahead[1], count - 2)

    def place(round: jax.Array | int, tile: int) -> Place:
        # Past the end the first stages work on the last row again, for nothing.
        row = jnp.minimum(round * geo.rows_per_round + tile // geo.tile_columns, total - 1)
        image = 0 if geo.images == 1 else row // geo.tile_rows
        first = row % geo.tile_rows * geo.rows
        return Place(tile % count, image, first, tile % geo.tile_columns * COLUMNS)

    def one_round(round: jax.Array, _: None) -> None:
        for tile in range(count):
            first(place(round, tile + ahead[0]))
            second(place(round, tile + ahead[1]))
            third(place(round, tile))

    for tile in range(ahead[0]):
        first(place(0, tile))
    for tile in range(ahead[1]):
        second(place(0, tile))
    jax.lax.fori_loop(0, total // geo.rows_per_round, one_round, None)


def dot(x: jax.Array, y: jax.Array, axes: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """Product over the axis axes[0] of x and axes[1] of y, in float32 of operands in `dtype`."""
    return jax.lax.dot_general(
        x.astype(dtype),
        y.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


class Tiles:
    """What the tiles of a grid step have in common, and the steps of working on one of them.

    The scratch "shifts" serves to move rows by an amount that differs between lanes: each tile of a
    round has two pieces of it, for rows and for columns.
    """

    def __init__(self, geo: Geometry, operands: dict[str, jax.Ref], scratch: dict[str, jax.Ref]):
        self.geo, self.scratch = geo, scratch
        self.dtype = operands["query"].dtype
        self.content = "key" in operands
        self.table = None
        if "table" in operands:
            self.table = operands["table"][...].astype(jnp.float32)
        scratch["shifts"][...] = jnp.zeros(scratch["shifts"].shape, jnp.float32)
        shape = (geo.heads, 1, geo.lanes)
        head, lane = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 2))
        # [h, 1, lanes]: 1 for the head's own lanes, else 0
        self.own = jnp.where(lane // geo.dim == head, 1.0, 0.0)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, geo.stacked), 1)
        self.row = lane % geo.queries // COLUMNS  # of the lane's query in its tile
        self.column = lane % COLUMNS
        self.window_rows = self._window(geo.places, self.row)
        self.window_columns = self._window(geo.key_columns, self.column)

    @staticmethod
    def shifts_shape(geo: Geometry) -> tuple[int, int, int, int]:
        front = up(max(geo.rows, COLUMNS))
        return geo.slots, 2, 2 * front + max(geo.places, geo.key_columns, geo.offsets), geo.stacked

    def _window(self, size: int, place: jax.Array) -> jax.Array:
        """[size, stacked]: does the row of keys lie in the lane's window?"""
        key = jax.lax.broadcasted_iota(jnp.int32, (size, self.geo.stacked), 0)
        return (key >= place) & (key < place + self.geo.options.window)

    def stack(self, name: str, place: Place) -> jax.Array:
        """The tile's part of a query map, stacked: [stacked, lanes] in the operands' dtype."""
        tile = self.scratch[name][place.queries(self.geo)]
        tile = tile.reshape(1, self.geo.queries, self.geo.lanes)
        return (tile * self.own).reshape(-1, self.geo.lanes).astype(self.dtype)

    def put(self, name: str, place: Place, stacked: jax.Array) -> None:
        """Stores of [stacked, lanes] each head's own lanes in the tile's part of a query map."""
        geo = self.geo
        heads = stacked.reshape(geo.heads, geo.rows, COLUMNS, geo.lanes)
        for n in range(geo.heads):
            own = slice(n * geo.dim, (n + 1) * geo.dim)
            self.scratch[name][(*place.queries(geo), own)] = heads[n, ..., own]

    def keys(self, name: str, place: Place) -> jax.Array:
        """The tile's part of a key map, [u v, lanes]."""
        return self.scratch[name][place.keys(self.geo)].reshape(-1, self.geo.lanes)

    def add(self, name: str, place: Place, x: jax.Array) -> None:
        """Adds [u v, lanes] to the tile's part of a key map."""
        geo = self.geo
        x = x.reshape(geo.key_rows, geo.key_columns, geo.lanes)
        self.scratch[name][place.keys(geo)] += x

    def logits(self, place: Place, query: jax.Array) -> jax.Array:
        """[u v, stacked], of stacked queries; `OUTSIDE` beyond their windows."""
        geo = self.geo
        content = [self.keys("key", place)] if self.content else []
        relative = [] if self.table is None else [self.table]
        products = dot(jnp.concatenate(content + relative), query, (1, 1), self.dtype)
        rows = columns = jnp.zeros((1, geo.stacked))
        if relative:
            rows = self._to_places(place.slot, 0, products[-2 * geo.offsets : -geo.offsets])
            columns = self._to_places(place.slot, 1, products[-geo.offsets :])
        inside_rows, inside_columns = self.window_rows, self.window_columns
        if geo.options.boundary == "mask":
            inside_rows &= self._image(geo.places, place.row, geo.height)
            inside_columns &= self._image(geo.key_columns, place.column, geo.width)
        # Selected, not added: what `shifts` still holds of another image shall not count.
        rows = jnp.where(inside_rows, rows, OUTSIDE)
        columns = jnp.where(inside_columns, columns, OUTSIDE)
        logits = jnp.concatenate([rows[u : u + 1] + columns for u in range(geo.key_rows)])
        if content:
            logits += products[: geo.keys]
        return logits if geo.options.scale == 1 else logits * geo.options.scale

    def _image(self, size: int, first: jax.Array | int, length: int) -> jax.Array:
        """[size, stacked]: does the row of keys lie in the image?"""
        key = jax.lax.broadcasted_iota(jnp.int32, (size, self.geo.stacked), 0)
        place = key + (first - self.geo.options.window // 2)
        return (place >= 0) & (place < length)

    def _axis(self, axis: int) -> tuple[jax.Array, int, int]:
        """The lanes' places in their tile, how many places there are, and the keys' extent."""
        if axis == 0:
            return self.row, self.geo.rows, self.geo.places
        return self.column, COLUMNS, self.geo.key_columns

    def _to_places(self, slot: int, axis: int, x: jax.Array) -> jax.Array:
        """By offset, [offsets, stacked], to by key: each lane moves down by its place."""
        lane, places, size = self._axis(axis)
        scratch = self.scratch["shifts"].at[slot, axis]
        front = up(max(self.geo.rows, COLUMNS))
        scratch[front : front + self.geo.offsets] = x
        moved = scratch[front : front + size]
        for place in range(1, places):
            moved = jnp.where(lane == place, scratch[front - place : front - place + size], moved)
        return moved

    def relative(self, place: Place, logits: jax.Array) -> jax.Array:
        """From cotangents of the logits to those of the table's logits, [2 x offsets, stacked]."""
        geo = self.geo
        square = logits.reshape(geo.key_rows, geo.key_columns, geo.stacked)
        rows = jnp.pad(square.sum(axis=1), ((0, geo.places - geo.key_rows), (0, 0)))
        rows = self._to_offsets(place.slot, 0, rows)
        columns = self._to_offsets(place.slot, 1, square.sum(axis=0))
        return jnp.concatenate([rows, columns])

    def by_query(self, relative: jax.Array) -> jax.Array:
        """[2 x offsets, stacked] to [a 8, h x 2 x offsets]: the heads side by side."""
        heads = relative.T.reshape(self.geo.heads, self.geo.queries, -1)
        return jnp.concatenate(list(heads), axis=1)

    def own_tables(self) -> jax.Array:
        """The table for each head, on its own lanes alone: [h x 2 x offsets, lanes]."""
        return (self.table[None] * self.own).reshape(-1, self.geo.lanes)

    def _to_offsets(self, slot: int, axis: int, x: jax.Array) -> jax.Array:
        """The transpose of `_to_places`; 0 for offsets from K on."""
        lane, places, size = self._axis(axis)
        scratch = self.scratch["shifts"].at[slot, axis]
        scratch[:size] = x
        moved = scratch[: self.geo.offsets]
        for place in range(1, places):
            moved = jnp.where(lane == place, scratch[place : place + self.geo.offsets], moved)
        offset = jax.lax.broadcasted_iota(jnp.int32, moved.shape, 0)
        return jnp.where(offset < self.geo.options.window, moved, 0.0)
