"""The kernels' compile-time arguments for a problem, and how many programs they start."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from sasa_jax.ops.local_attention.contract import Options

TILE_H, TILE_W = 2, 8  # pixels of a tile: of 16, the shape whose halo fills 8 x 16 best
LEAST = 16  # channels that a product sums over
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """What a kernel is compiled with, and how many programs there are."""

    kernel: str  # forward, backward_queries or backward_keys
    constants: dict[str, int | float | bool | str]
    programs: int
    warps: int
    stages: int  # chunks, or tiles, of which copies are under way at a time

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
    halo = (TILE_H + options.window - 1, TILE_W + options.window - 1)
    cols = power_of_two(halo[1])
    rows = min(_chunk(kernel, dim) // cols, power_of_two(halo[0]))
    chunks = -(-halo[0] // rows)
    # So many heads as fill the channels that a product sums over.
    group = math.gcd(heads, max(1, LEAST // dim))
    # The keys' gradients, sums, need no more than two rows of the halo in registers at a time.
    parts = 1
    if kernel == "backward_keys" and chunks == 1 and dtype.itemsize == 2:
        parts, rows = rows // 2, 2
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
        "SLOTS": 8 if options.window < 8 else 16,  # a window's offsets along an axis, padded
        "ROWS": rows,
        "COLS": cols,
        "CHUNKS": chunks,
        "PARTS": parts,
    }
    programs = batch * -(-height // TILE_H) * (heads // group)
    # float32 is multiplied without matrix units: several warps share what registers it takes, but
    # no more threads than TILE * ROWS, or Triton fails at a gather from so many numbers.
    warps = max(1, min(4, rows // 2)) if dtype.itemsize == 4 else 1
    return Launch(kernel, constants, programs, warps, _stages(dim))


def _chunk(kernel: str, dim: int) -> int:
    """Pixels of the halo that a tile meets at a time; 128 is all of it for windows up to 7.

    By measurement on an H100: with 64 instead, the backward passes of heads of 16 took 1.2 to 1.6
    times as long. The keys' of heads of 64 are faster with 32.
    """
    return 32 if kernel == "backward_keys" and dim > 32 else 128


def _stages(dim: int) -> int:
    """With two, the next tile's pixels are copied to shared memory while one is computed.

    Measured on an H100: backward passes take 0.5 to 0.75 of the time, the forward pass 0.7 to 0.95.
    Of wider heads two do not fit the 48 KB that every GPU has.
    """
    return 2 if dim <= 32 else 1


def power_of_two(size: int) -> int:
    """The least one that is not below `size`."""
    return 1 << (size - 1).bit_length()
