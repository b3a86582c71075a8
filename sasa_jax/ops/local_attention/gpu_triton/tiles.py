"""Steps on one tile that the kernels share, in Triton; `kernels` says how an image is cut.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

from sasa_jax.ops.local_attention.contract import OUTSIDE as _OUTSIDE

TILE_H = tl.constexpr(2)
TILE_W = tl.constexpr(8)
TILE = tl.constexpr(16)
SLOTS = tl.constexpr(16)  # a table's offsets, padded: the least that tl.dot sums over
OUTSIDE = tl.constexpr(_OUTSIDE)


@triton.jit
def dot(a, b, total=None):
    """total + a b, summed in float32; float32 is not multiplied as tf32."""
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def strip_of_program(HEIGHT: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr):
    """Image (64 bits: offsets of images may need them), first row and first head of a program.

    Heads come first, so that programs that run at a time share what they read.
    """
    program = tl.program_id(0)
    groups = HEADS // GROUP
    strips = (HEIGHT + TILE_H - 1) // TILE_H
    image = program // (groups * strips)
    strip = (program // groups) % strips
    return image.to(tl.int64), strip * TILE_H, (program % groups) * GROUP


@triton.jit
def tile_pixels(row, column):
    pixel = tl.arange(0, TILE)
    return row + pixel // TILE_W, column + pixel % TILE_W


@triton.jit
def chunk_pixels(row, column, ROWS: tl.constexpr, COLS: tl.constexpr):
    pixel = tl.arange(0, ROWS * COLS)
    return row + pixel // COLS, column + pixel % COLS


@triton.jit
def inside_image(rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < WIDTH)


@triton.jit
def load_pixels(
    head_start, rows, columns,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
):  # fmt: skip
    """[pixels, DIM_BLOCK] of one head; zero outside the image and beyond DIM."""
    dim = tl.arange(0, DIM_BLOCK)
    offsets = (rows * WIDTH + columns) * (HEADS * DIM)
    inside = inside_image(rows, columns, HEIGHT, WIDTH)
    return tl.load(
        head_start + offsets[:, None] + dim[None, :],
        mask=inside[:, None] & (dim < DIM)[None, :],
        other=0.0,
    )


@triton.jit
def store_pixels(
    head_start, rows, columns, content,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
):  # fmt: skip
    dim = tl.arange(0, DIM_BLOCK)
    offsets = (rows * WIDTH + columns) * (HEADS * DIM)
    inside = inside_image(rows, columns, HEIGHT, WIDTH)
    tl.store(
        head_start + offsets[:, None] + dim[None, :],
        content.to(head_start.dtype.element_ty),
        mask=inside[:, None] & (dim < DIM)[None, :],
    )


@triton.jit
def load_tables(
    rows_start, columns_start, head,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    TABLES: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Both tables, [SLOTS, DIM_BLOCK], each zero on the half of the dimensions it does not own."""
    offset = tl.arange(0, SLOTS)[:, None]
    dim = tl.arange(0, DIM_BLOCK)[None, :]
    half: tl.constexpr = DIM // 2
    place = offset * half + dim
    if PER_HEAD:
        place = (offset * HEADS + head) * half + dim
    counts = TABLES & (offset < WINDOW) & (dim < DIM)
    rows = tl.load(rows_start + place, mask=counts & (dim < half), other=0.0)
    columns = tl.load(columns_start + place - half, mask=counts & (dim >= half), other=0.0)
    return rows, columns


@triton.jit
def spread_logits(
    relative, place, slots, first,
    LIMIT: tl.constexpr, WINDOW: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Logits of a tile's queries along one axis, [TILE, slots], from those by offset.

    Args:
      relative: [TILE, SLOTS], by offset in the window.
      place: [TILE], the queries' places in the tile along the axis.
      slots: places in the halo; the halo begins at pixel `first` of `LIMIT`.
    """
    offset = slots[None, :] - place[:, None]
    counts = (offset >= 0) & (offset < WINDOW)
    logits = tl.gather(relative, tl.where(counts, offset, 0), 1) * SCALE2
    if MASK:
        pixel = first + slots
        counts = counts & ((pixel >= 0) & (pixel < LIMIT))[None, :]
    return tl.where(counts, logits, OUTSIDE)


@triton.jit
def relative_logits(queries, row_table, column_table):
    """Products of queries and tables, by offset along rows and along columns: [queries, SLOTS]."""
    rows = dot(queries, tl.trans(row_table))
    columns = dot(queries, tl.trans(column_table))
    return rows, columns


@triton.jit
def meet(
    chunk, query, key_start, value_start, row_relative, column_logits, row, column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr, WINDOW: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Keys, values and logits, [TILE, ROWS * COLS] in units of log 2, of a tile and a chunk.

    The tile begins at pixel (row, column).
    """
    first_row, first_column = row - WINDOW // 2, column - WINDOW // 2
    tile_row, _ = tile_pixels(0, 0)
    slots = chunk * ROWS + tl.arange(0, ROWS)
    row_logits = spread_logits(
        row_relative, tile_row, slots, first_row, HEIGHT, WINDOW, SCALE2, MASK
    )
    rows, columns = chunk_pixels(first_row + chunk * ROWS, first_column, ROWS, COLS)
    values = load_pixels(value_start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK)
    keys = values
    logits = row_logits[:, :, None] + column_logits[:, None, :]
    if CONTENT:
        keys = load_pixels(key_start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK)
        products = dot(query, tl.trans(keys))
        logits += tl.reshape(products, (TILE, ROWS, COLS)) * SCALE2
    return keys, values, tl.reshape(logits, (TILE, ROWS * COLS))


@triton.jit
def pull_logits(relative, place, slots, WINDOW: tl.constexpr, SCALE2: tl.constexpr):
    """Logits of a chunk's queries for the rows, or columns, of a tile of keys: [queries, place].

    Args:
      relative: [queries, SLOTS], by offset in the window.
      place: of the keys in the tile along the axis.
      slots: [queries], the queries' places in the halo along the axis.
    """
    offset = place[None, :] - slots[:, None] + (WINDOW - 1)
    counts = (offset >= 0) & (offset < WINDOW)
    logits = tl.gather(relative, tl.where(counts, offset, 0), 1) * SCALE2
    return tl.where(counts, logits, OUTSIDE)
