"""How the matrix-unit kernel cuts the maps of one call: grid steps, groups of heads, tiles."""

from dataclasses import dataclass

from sasa_jax.ops.local_attention.contract import Options

LANES = 128
SUBLANES = 8
COLUMNS = SUBLANES  # queries of a tile in one row
# Tiles that one round of the loop works on, at least. More of them hide latencies better; the
# interpreter has none, but must compile every one.
BUSY, BUSY_INTERPRETED = 12, 3


@dataclass(frozen=True)
class Geometry:
    """How the maps of one call are cut into grid steps, groups of heads, and tiles."""

    options: Options
    height: int
    width: int
    heads: int  # h, of a group
    dim: int  # D
    rows: int  # a, of queries in a tile
    images: int  # of a grid step
    busy: int

    @classmethod
    def of(
        cls, options: Options, shape: tuple[int, int, int, int, int], busy: int = BUSY
    ) -> "Geometry":
        """For queries [B, H, W, N, D].

        A group is a multiple of 128 lanes wide, or has all heads. Its stacked queries fill 128
        lanes if the map is high enough. A grid step has as many images as keep it busy, a divisor
        of the batch if one is near.
        """
        batch, height, width, heads, dim = shape
        group = next(
            n for n in range(1, heads + 1) if n == heads or heads % n == 0 == n * dim % LANES
        )
        rows = min(height, max(1, LANES // (group * COLUMNS)))
        images = -(-busy // (-(-height // rows) * -(-width // COLUMNS)))
        divisors = (n for n in range(images, 2 * images + 1) if batch % n == 0)
        return cls(options, height, width, group, dim, rows, next(divisors, images), busy)

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
        return up(COLUMNS + self.options.window - 1)

    @property
    def keys(self) -> int:
        return self.key_rows * self.key_columns

    @property
    def offsets(self) -> int:
        """K, rounded up to whole registers."""
        return up(self.options.window)

    @property
    def places(self) -> int:
        """u, rounded up to whole registers."""
        return up(self.key_rows)

    @property
    def tile_rows(self) -> int:
        return -(-self.height // self.rows)

    @property
    def tile_columns(self) -> int:
        return -(-self.width // COLUMNS)

    @property
    def rows_per_round(self) -> int:
        """Tile rows, over all images of a grid step, that one round of the loop works on."""
        total = self.images * self.tile_rows
        divisors = (n for n in range(1, total + 1) if total % n == 0)
        return next(n for n in divisors if n * self.tile_columns >= self.busy)

    @property
    def slots(self) -> int:
        """Tiles of a round; each has its own scratch, so that they do not wait for one another."""
        return self.rows_per_round * self.tile_columns

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


def up(number: int) -> int:
    return -(-number // SUBLANES) * SUBLANES
