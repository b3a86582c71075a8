"""The kernels' compile-time arguments for a problem, and how many programs they start."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import Options

TILE_H, TILE_W = 2, 8  # pixels of a tile: of 16, the shape whose halo fills 8 x 16 best
LEAST = 16  # channels that a product sums over
PIXELS = 128  # of the halo that a tile meets at a time: all of it for windows up to 7
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """What a kernel is compiled with, and how many programs there are."""

    kernel: str  # forward, backward_queries or backward_keys
    constants: dict[str, int | float | bool | str]
    programs: int
    warps: int

    @property
    def group(self) -> int:
        """Heads of one program."""
        return self.constants["GROUP"]


def launch_of(
    kernel: Literal["forward", "backward_queries", "backward_keys"],
    options: Options,
    shape: tuple[int, int, int, int, int],
    dtype: jnp.dtype,
    *,
    content: bool,
    tables: bool,
    per_head: bool,
    packed: bool,
) -> Launch:
    """Args:
    shape: [B, H, W, N, D].
    content: there is a key.
    tables, per_head: there are embeddings, and one for each head.
    packed: a pixel's query, key and value follow one another, and so do their gradients.
    """
    batch, height, width, heads, dim = shape
    # So many heads as fill the channels that a product sums over.
    group = math.gcd(heads, max(1, LEAST // dim))
    halo = TILE_H + options.window - 1
    cols = power_of_two(TILE_W + options.window - 1)
    rounds = -(-halo * cols // PIXELS)
    rows = -(-halo // rounds)
    wide = dtype.itemsize == 4
    tiles = 1 if wide or rounds > 1 else min(_most_tiles(kernel, dim), -(-height // TILE_H))
    constants = {
        "HEIGHT": height,
        "WIDTH": width,
        "HEADS": heads,
        "DIM": dim,
        "WINDOW": options.window,
        "SCALE": options.scale,
        "SCALE2": options.scale * LOG2E,  # to units of log 2
        "MASK": options.boundary == "mask",
        "CONTENT": content,
        "TABLES": tables,
        "PER_HEAD": per_head,
        "PITCH": heads * dim * (3 if packed else 1),  # numbers from a pixel's query to the next's
        "APART": heads * dim if packed else 0,  # from a query to its key, from it to its value
        "GROUP": group,
        "BLOCK": max(LEAST, power_of_two(group * dim)),
        "SLOTS": 8 if options.window < 8 else 16,
        "COLS": cols,
        "ROWS": rows,
        "ROW_SLOTS": max(8, power_of_two(rows)),
        "ROUNDS": rounds,
        "TILES": tiles,
    }
    blocks = -(-height // (TILE_H * tiles)) * -(-width // TILE_W)
    programs = batch * blocks * (heads // group)
    # float32 is multiplied without matrix units: several warps share what registers it takes.
    return Launch(kernel, constants, programs, 4 if wide else 1)


def _most_tiles(kernel: str, dim: int) -> int:
    return 4 if dim <= 16 else 2 if dim <= 32 else 1


def power_of_two(size: int) -> int:
    """The least one that is not below `size`."""
    return 1 << (size - 1).bit_length()
