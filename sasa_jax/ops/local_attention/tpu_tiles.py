"""Tiles of the matrix-unit kernel: their geometry, and the steps that both passes share.

A tile is a x 8 queries and the u x v keys that their windows cover. Its logits stand with the keys
on rows, u-major, and the queries of several heads on columns, [u v, h a 8]: every reduction over
the keys is then one over rows, which costs no lane shuffles.

The heads that share a group of 128 lanes are stacked: each has a copy of the queries in which the
other heads' lanes are 0, so that one product with the keys serves all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sasa_jax.ops.local_attention.blocks import OUTSIDE
from sasa_jax.ops.local_attention.contract import Inputs, Options
from sasa_jax.ops.local_attention.definition import per_head

LANES = 128
SUBLANES = 8
COLUMNS = SUBLANES  # queries of a tile in one row
BUSY = 6  # tiles that one round of the loop works on, at least: enough to hide their latencies


@dataclass(frozen=True)
class Geometry:
    """How the maps of one call are cut into grid steps, groups of heads, and tiles."""

    options: Options
    height: int
    width: int
    heads: int  # h, of a group
    dim: int
    rows: int  # a

    @classmethod
    def of(cls, options: Options, shape: tuple[int, int, int, int, int]) -> "Geometry":
        """For queries [B, H, W, N, D]; a group is 128 lanes wide, or all heads."""
        _, height, width, heads, dim = shape
        group = next(
            n for n in range(1, heads + 1) if n == heads or heads % n == 0 == n * dim % LANES
        )
        rows = min(height, max(1, LANES // (group * COLUMNS)))
        return cls(options, height, width, group, dim, rows)

    @property
    def lanes(self) -> int:
        return self.heads * self.dim

    @property
    def queries(self) -> int:
        """Of a tile, a x 8."""
        return self.rows * COLUMNS

    @property
    def stacked(self) -> int:
        """h x a x 8, head-major."""
        return self.heads * self.queries

    @property
    def key_rows(self) -> int:
        """u."""
        return self.rows + self.options.window - 1

    @property
    def key_columns(self) -> int:
        """v, rounded up to whole registers."""
        return _up(COLUMNS + self.options.window - 1)

    @property
    def keys(self) -> int:
        return self.key_rows * self.key_columns

    @property
    def offsets(self) -> int:
        """K, rounded up to whole registers."""
        return _up(self.options.window)

    @property
    def places(self) -> int:
        """u, rounded up to whole registers."""
        return _up(self.key_rows)

    @property
    def tile_rows(self) -> int:
        return -(-self.height // self.rows)

    @property
    def tile_columns(self) -> int:
        return -(-self.width // COLUMNS)

    @property
    def images(self) -> int:
        """Of one grid step: as many as fill a round of the loop."""
        return -(-BUSY // (self.tile_rows * self.tile_columns))

    @property
    def rows_per_round(self) -> int:
        """Tile rows, over all images of a grid step, that one round of the loop works on."""
        total = self.images * self.tile_rows
        enough = (n for n in range(1, total + 1) if n * self.tile_columns >= BUSY)
        return next(n for n in enough if total % n == 0)

    @property
    def query_map(self) -> tuple[int, int, int, int]:
        """Shape of the queries of a grid step: whole tiles."""
        rows, columns = self.tile_rows * self.rows, self.tile_columns * COLUMNS
        return self.images, rows, columns, self.lanes

    @property
    def key_map(self) -> tuple[int, int, int, int]:
        """Shape of the keys of a grid step: the query map and the rim of its last tiles."""
        rows = (self.tile_rows - 1) * self.rows + self.key_rows
        columns = (self.tile_columns - 1) * COLUMNS + self.key_columns
        return self.images, rows, columns, self.lanes


def _up(number: int) -> int:
    return -(-number // SUBLANES) * SUBLANES


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


def slots(geo: Geometry) -> int:
    """Tiles of a round; each has its own scratch, so that they do not wait for one another."""
    return geo.rows_per_round * geo.tile_columns


def pipeline(geo: Geometry, *stages: Callable[[Place], None]) -> None:
    """Takes every tile of the grid step through three stages, each stage one tile behind the last.

    The compiler orders instructions much as they are written: written so, one tile's products
    overlap with its neighbours' softmax.
    """
    total, count = geo.images * geo.tile_rows, slots(geo)

    def place(round: jax.Array | int, tile: int) -> Place:
        # Past the end the first stages work on the last row again, for nothing.
        row = jnp.minimum(round * geo.rows_per_round + tile // geo.tile_columns, total - 1)
        image = 0 if geo.images == 1 else row // geo.tile_rows
        first = row % geo.tile_rows * geo.rows
        return Place(tile % count, image, first, tile % geo.tile_columns * COLUMNS)

    def one_round(round: jax.Array, _: None) -> None:
        for tile in range(count):
            for ahead, stage in zip((2, 1, 0), stages, strict=True):
                stage(place(round, tile + ahead))

    first, second, _ = stages
    first(place(0, 0))
    first(place(0, 1))
    second(place(0, 0))
    jax.lax.fori_loop(0, total // geo.rows_per_round, one_round, None)


def read(geo: Geometry, block: jax.Ref, scratch: jax.Ref, reach: int = 0) -> None:
    """Copies a block [images, H, W, lanes] into a map, `reach` from its corner, with 0 around."""
    images, rows, columns, lanes = scratch.shape
    right = (geo.width + reach) // SUBLANES * SUBLANES

    def image_row(index: jax.Array, _: None) -> None:
        image, row = index // rows, index % rows
        inside = (row >= reach) & (row < geo.height + reach)

        @pl.when(~inside)
        def _() -> None:
            scratch[image, row] = jnp.zeros((columns, lanes), scratch.dtype)

        @pl.when(inside)
        def _() -> None:
            for edge in (slice(0, reach), slice(right, columns)):
                if edge.start < edge.stop:
                    zeros = jnp.zeros((edge.stop - edge.start, lanes), scratch.dtype)
                    scratch[image, row, edge] = zeros
            scratch[image, row, reach : reach + geo.width] = block[image, row - reach].astype(
                scratch.dtype
            )

    jax.lax.fori_loop(0, images * rows, image_row, None)


def write(geo: Geometry, scratch: jax.Ref, block: jax.Ref, reach: int = 0) -> None:
    """Copies a map's part, `reach` from its corner, into a block [images, H, W, lanes]."""

    def image_row(index: jax.Array, _: None) -> None:
        image, row = index // geo.height, index % geo.height
        columns = scratch[image, row + reach, reach : reach + geo.width]
        block[image, row] = columns.astype(block.dtype)

    jax.lax.fori_loop(0, geo.images * geo.height, image_row, None)


def clear(scratch: jax.Ref) -> None:
    """Sets a map to 0."""
    images, rows = scratch.shape[:2]

    def image_row(index: jax.Array, _: None) -> None:
        scratch[index // rows, index % rows] = jnp.zeros(scratch.shape[2:], scratch.dtype)

    jax.lax.fori_loop(0, images * rows, image_row, None)


def tables(geo: Geometry, inputs: Inputs) -> jax.Array:
    """[2 x offsets, C]: the row embeddings on their lanes, then the column embeddings on theirs."""

    def padded(table: jax.Array) -> jax.Array:
        table = table.reshape(table.shape[0], -1)
        return jnp.pad(table, ((0, geo.offsets - table.shape[0]), (0, 0)))

    heads = inputs.query.shape[3]
    rows, columns = (per_head(table, heads) for table in inputs[3:])
    rows = jnp.concatenate([rows, jnp.zeros_like(rows)], axis=-1)
    columns = jnp.concatenate([jnp.zeros_like(columns), columns], axis=-1)
    return jnp.concatenate([padded(rows), padded(columns)])


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

    `shifts` is scratch for moving rows by an amount that differs between lanes: each tile of a
    round has two pieces of it, for rows and for columns.
    """

    def __init__(self, geo: Geometry, dtype: jnp.dtype, shifts: jax.Ref):
        self.geo, self.dtype, self.shifts = geo, dtype, shifts
        shifts[...] = jnp.zeros(shifts.shape, shifts.dtype)
        shape = (geo.heads, 1, geo.lanes)
        head, lane = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 2))
        self.own = lane // geo.dim == head  # [h, 1, lanes]: is the lane the head's?
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, geo.stacked), 1)
        self.row = lane % geo.queries // COLUMNS  # of the lane's query in its tile
        self.column = lane % COLUMNS
        self.window_rows = self._window(geo.places, self.row)
        self.window_columns = self._window(geo.key_columns, self.column)

    @staticmethod
    def shifts_shape(geo: Geometry) -> tuple[int, int, int, int]:
        front = _up(max(geo.rows, COLUMNS))
        return slots(geo), 2, 2 * front + max(geo.places, geo.key_columns, geo.offsets), geo.stacked

    def _window(self, size: int, place: jax.Array) -> jax.Array:
        """[size, stacked]: does the row of keys lie in the lane's window?"""
        key = jax.lax.broadcasted_iota(jnp.int32, (size, self.geo.stacked), 0)
        return (key >= place) & (key < place + self.geo.options.window)

    def stack(self, tile: jax.Array) -> jax.Array:
        """[a, 8, lanes] to [stacked, lanes] in the kernel's dtype."""
        tile = tile.reshape(1, self.geo.queries, self.geo.lanes)
        return jnp.where(self.own, tile, 0.0).reshape(-1, self.geo.lanes).astype(self.dtype)

    def unstack(self, stacked: jax.Array) -> jax.Array:
        """[stacked, lanes] to [a, 8, lanes]: of each head its own lanes."""
        geo = self.geo
        heads = stacked.reshape(geo.heads, geo.queries, geo.lanes)
        tile = heads[0]
        for n in range(1, geo.heads):
            tile = jnp.where(self.own[n], heads[n], tile)
        return tile.reshape(geo.rows, COLUMNS, geo.lanes)

    def keys(self, scratch: jax.Ref, place: Place) -> jax.Array:
        """The tile's part of a key map, [u v, lanes] in the kernel's dtype."""
        return scratch[place.keys(self.geo)].reshape(-1, self.geo.lanes).astype(self.dtype)

    def add(self, scratch: jax.Ref, place: Place, x: jax.Array) -> None:
        """Adds [u v, lanes] to the tile's part of a key map."""
        geo = self.geo
        scratch[place.keys(geo)] += x.reshape(geo.key_rows, geo.key_columns, geo.lanes)

    def logits(
        self,
        place: Place,
        query: jax.Array,
        key: jax.Array | None,
        table: jax.Array | None,
    ) -> jax.Array:
        """[u v, stacked], of stacked queries, keys [u v, lanes] and the table."""
        geo = self.geo
        rows = columns = jnp.zeros((1, geo.stacked))
        if table is not None:
            relative = dot(table, query, (1, 1), self.dtype)
            rows = self._to_places(place.slot, 0, relative[: geo.offsets])
            columns = self._to_places(place.slot, 1, relative[geo.offsets :])
        inside_rows, inside_columns = self.window_rows, self.window_columns
        if geo.options.boundary == "mask":
            inside_rows &= self._image(geo.places, place.row, geo.height)
            inside_columns &= self._image(geo.key_columns, place.column, geo.width)
        # Selected, not added: what `shifts` still holds of another image shall not count.
        rows = jnp.where(inside_rows, rows, OUTSIDE)
        columns = jnp.where(inside_columns, columns, OUTSIDE)
        square = [rows[u : u + 1] + columns for u in range(geo.key_rows)]
        logits = jnp.concatenate(square)
        if key is not None:
            logits += dot(key, query, (1, 1), self.dtype)
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
        scratch = self.shifts.at[slot, axis]
        front = _up(max(self.geo.rows, COLUMNS))
        scratch[front : front + self.geo.offsets] = x
        moved = scratch[front : front + size]
        for place in range(1, places):
            moved = jnp.where(lane == place, scratch[front - place : front - place + size], moved)
        return moved

    def relative(self, place: Place, logits: jax.Array) -> jax.Array:
        """From cotangents of the logits to those of q . row and q . column, [2 x offsets, stacked].

        One product sums over the columns and over the rows of keys.
        """
        geo = self.geo
        shape = (geo.places + geo.key_columns, geo.keys)
        sums, key = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
        same_row = key // geo.key_columns == sums
        same_column = key % geo.key_columns == sums - geo.places
        sums = dot(jnp.where(same_row | same_column, 1.0, 0.0), logits, (1, 0), self.dtype)
        rows = self._to_offsets(place.slot, 0, sums[: geo.places])
        return jnp.concatenate([rows, self._to_offsets(place.slot, 1, sums[geo.places :])])

    def _to_offsets(self, slot: int, axis: int, x: jax.Array) -> jax.Array:
        """The transpose of `_to_places`; 0 for offsets from K on."""
        lane, places, size = self._axis(axis)
        scratch = self.shifts.at[slot, axis]
        scratch[:size] = x
        moved = scratch[: self.geo.offsets]
        for place in range(1, places):
            moved = jnp.where(lane == place, scratch[place : place + self.geo.offsets], moved)
        offset = jax.lax.broadcasted_iota(jnp.int32, moved.shape, 0)
        return jnp.where(offset < self.geo.options.window, moved, 0.0)
