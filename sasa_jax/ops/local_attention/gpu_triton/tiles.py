"""Steps on one tile that the kernels share, in Triton; `kernels` says how an image is cut.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

TILE_H = tl.constexpr(2)
TILE_W = tl.constexpr(8)
TILE = tl.constexpr(16)
SLOTS = tl.constexpr(16)  # a table's offsets, padded: the least that tl.dot sums over
# The logit of a slot that does not count, and what the largest logit begins as: with the first far
# below the second, exponentials of such slots are 0 even where a query has no other.
OUTSIDE = tl.constexpr(-(2.0**100))
LOWEST = tl.constexpr(-(2.0**80))


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
def pixels_of(DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Rows and columns, [DOWN * ACROSS], of a rectangle's pixels, row by row."""
    pixel = tl.arange(0, DOWN * ACROSS)
    return pixel // ACROSS, pixel % ACROSS


@triton.jit
def inside_image(rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < WIDTH)


@triton.jit
def load_pixels(
    head_start, row, column, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
):  # fmt: skip
    """[DOWN * ACROSS, DIM_BLOCK] of one head, a rectangle of pixels that begins at (row, column).

    Zero outside the image and beyond DIM. PITCH: numbers from a pixel to the next. Distances within
    the rectangle are constants, which cost no instructions of their own.
    """
    down, across = pixels_of(DOWN, ACROSS)
    dim = tl.arange(0, DIM_BLOCK)[None, :]
    inside = inside_image(row + down, column + across, HEIGHT, WIDTH)
    return tl.load(
        head_start
        + (row * WIDTH + column) * PITCH
        + (((down * WIDTH + across) * PITCH)[:, None] + dim),
        mask=inside[:, None] & (dim < DIM),
        other=0.0,
    )


@triton.jit
def store_pixels(
    head_start, row, column, DOWN: tl.constexpr, ACROSS: tl.constexpr, content,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    DIM: tl.constexpr, DIM_BLOCK: tl.constexpr,
):  # fmt: skip
    """The reverse of `load_pixels`."""
    down, across = pixels_of(DOWN, ACROSS)
    dim = tl.arange(0, DIM_BLOCK)[None, :]
    inside = inside_image(row + down, column + across, HEIGHT, WIDTH)
    tl.store(
        head_start
        + (row * WIDTH + column) * PITCH
        + (((down * WIDTH + across) * PITCH)[:, None] + dim),
        content.to(head_start.dtype.element_ty),
        mask=inside[:, None] & (dim < DIM),
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
    LIMIT: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Logits of a tile's queries along one axis, [TILE, slots], from those by offset.

    Args:
      relative: [TILE, SLOTS], by offset in the window.
      place: [TILE], the queries' places in the tile along the axis.
      slots: places in the halo; the halo begins at pixel `first` of `LIMIT`.
    """
    offset = slots[None, :] - place[:, None]
    counts = (offset >= 0) & (offset < WINDOW)
    logits = tl.gather(relative, tl.where(counts, offset, 0), 1)
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
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr, DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Keys, values and logits without the scale, [TILE, ROWS * COLS], of a tile and a chunk.

    The tile begins at pixel (row, column).
    """
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    row_logits = spread_logits(
        row_relative, tile_row, chunk * ROWS + tl.arange(0, ROWS), row - WINDOW // 2,
        HEIGHT, WINDOW, MASK,
    )  # fmt: skip
    first_row, first_column = row - WINDOW // 2 + chunk * ROWS, column - WINDOW // 2
    values = load_pixels(
        value_start, first_row, first_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK
    )
    keys = values
    logits = row_logits[:, :, None] + column_logits[:, None, :]
    logits = tl.reshape(logits, (TILE, ROWS * COLS))
    if CONTENT:
        keys = load_pixels(
            key_start, first_row, first_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK
        )
        logits = dot(query, tl.trans(keys), logits)
    return keys, values, logits


@triton.jit
def pull_logits(by_offset, place, slots, WINDOW: tl.constexpr):
    """Logits of a chunk's queries for the columns of a tile of keys: [place, queries].

    Args:
      by_offset: [more than WINDOW, queries], by offset in the window.
      place: of the keys in the tile along the axis.
      slots: [queries], the queries' places in the halo along the axis.
    """
    counts = tl.arange(0, by_offset.shape[0]) < WINDOW
    by_offset = tl.where(counts[:, None], by_offset, OUTSIDE)
    offset = place[:, None] - slots[None, :] + (WINDOW - 1)
    return tl.gather(by_offset, tl.where((offset >= 0) & (offset < WINDOW), offset, WINDOW), 0)


@triton.jit
def load_row_keys(
    rows_start, head, first,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    TABLES: tl.constexpr, PER_HEAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """[ROWS, TILE, DIM_BLOCK]: the row embedding between a halo row's queries and a tile's keys.

    first: the first of the halo's rows. Zero outside the window.
    """
    half: tl.constexpr = DIM // 2
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    slots = first + tl.arange(0, ROWS)
    offset = tile_row[None, :, None] - slots[:, None, None] + (WINDOW - 1)
    dim = tl.arange(0, DIM_BLOCK)[None, None, :]
    place = offset * half + dim
    if PER_HEAD:
        place = (offset * HEADS + head) * half + dim
    counts = TABLES & (offset >= 0) & (offset < WINDOW) & (dim < half)
    return tl.load(rows_start + place, mask=counts, other=0.0)
