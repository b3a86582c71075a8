"""Steps on one tile that the kernels share, in Triton; `kernels` says how an image is cut.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

TILE_H = tl.constexpr(2)
TILE_W = tl.constexpr(8)
TILE = tl.constexpr(16)
MOST_ROWS = tl.constexpr(8)  # of a chunk
LEAST_ROWS = tl.constexpr(16)  # of a product's left side
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
    start, row, column, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[DOWN * ACROSS, BLOCK]: a rectangle of pixels that begins at (row, column).

    Zero outside the image and beyond CHANNELS. PITCH: numbers from a pixel to the next. Distances
    within the rectangle are constants, which cost no instructions of their own.
    """
    down, across = pixels_of(DOWN, ACROSS)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = inside_image(row + down, column + across, HEIGHT, WIDTH)
    return tl.load(
        start
        + (row * WIDTH + column) * PITCH
        + (((down * WIDTH + across) * PITCH)[:, None] + channel),
        mask=inside[:, None] & (channel < CHANNELS),
        other=0.0,
    )


@triton.jit
def store_pixels(
    start, row, column, DOWN: tl.constexpr, ACROSS: tl.constexpr, content,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The reverse of `load_pixels`."""
    down, across = pixels_of(DOWN, ACROSS)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = inside_image(row + down, column + across, HEIGHT, WIDTH)
    tl.store(
        start
        + (row * WIDTH + column) * PITCH
        + (((down * WIDTH + across) * PITCH)[:, None] + channel),
        content.to(start.dtype.element_ty),
        mask=inside[:, None] & (channel < CHANNELS),
    )


@triton.jit
def of_member(pixels, member: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr):
    """Pixels, [pixels, BLOCK], with zeros for all heads but one: they drop out of products."""
    if GROUP > 1:
        channel = tl.arange(0, pixels.shape[1])[None, :]
        pixels = tl.where(channel // DIM == member, pixels, 0.0).to(pixels.dtype)
    return pixels


@triton.jit
def with_member(pixels, others, member: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr):
    """`others`, [pixels, BLOCK], but for one head, which is that of `pixels`."""
    if GROUP > 1:
        channel = tl.arange(0, pixels.shape[1])[None, :]
        pixels = tl.where(channel // DIM == member, pixels, others)
    return pixels


@triton.jit
def place_in_table(
    offset, head, dim, HEADS: tl.constexpr, DIM: tl.constexpr, PER_HEAD: tl.constexpr
):
    """Of a number in an axis' table, [K, D/2] or [K, N, D/2]."""
    if PER_HEAD:
        offset = offset * HEADS + head
    return offset * (DIM // 2) + dim


@triton.jit
def load_table(
    rows_start, columns_start, first_head,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    SLOTS: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Both tables, [2 * SLOTS, BLOCK]: the rows' offsets, then the columns'.

    For each head of the group, and zero on the half of its dimensions that an axis does not own.
    """
    slot = tl.arange(0, 2 * SLOTS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    half: tl.constexpr = DIM // 2
    offset, dim = slot % SLOTS, channel % DIM
    place = place_in_table(offset, first_head + channel // DIM, dim, HEADS, DIM, PER_HEAD)
    counts = TABLES & (offset < WINDOW) & (channel < GROUP * DIM)
    by_row, first_half = slot < SLOTS, dim < half
    rows = tl.load(rows_start + place, mask=counts & by_row & first_half, other=0.0)
    by_column, second_half = slot >= SLOTS, dim >= half
    columns = tl.load(
        columns_start + place - half, mask=counts & by_column & second_half, other=0.0
    )
    return rows + columns


@triton.jit
def spread_logits(
    relative, place, slots, first,
    LIMIT: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """Logits of a tile's queries along one axis, [TILE, slots], from those by offset.

    Args:
      relative: [TILE, 2 * SLOTS], products of queries and `load_table`, of which the axis' begin
        at FROM.
      place: [TILE], the queries' places in the tile along the axis.
      slots: places in the halo; the halo begins at pixel `first` of `LIMIT`.
    """
    offset = slots[None, :] - place[:, None]
    counts = (offset >= 0) & (offset < WINDOW)
    logits = tl.gather(relative, tl.where(counts, offset + FROM, 0), 1)
    if MASK:
        pixel = first + slots
        counts = counts & ((pixel >= 0) & (pixel < LIMIT))[None, :]
    return tl.where(counts, logits, OUTSIDE)


@triton.jit
def load_halo(
    chunk, key_start, value_start, row, column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    CONTENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Keys and values of a chunk of a tile's halo: [ROWS * COLS, BLOCK]; without content, values.

    The tile begins at pixel (row, column).
    """
    first_row, first_column = row - WINDOW // 2 + chunk * ROWS, column - WINDOW // 2
    values = load_pixels(
        value_start, first_row, first_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
    )
    keys = values
    if CONTENT:
        keys = load_pixels(
            key_start, first_row, first_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
        )
    return keys, values


@triton.jit
def meet(
    chunk, query, near, relative, column_logits, key_start, value_start, row, column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Keys, values and logits without the scale, [TILE, ROWS * COLS], of a tile and a chunk.

    Args:
      near: what `load_halo` made of the only chunk; unused, where there are more.
      relative, column_logits: what `spread_logits` takes, and what it made of the columns'.
    """
    if CHUNKS == 1:
        keys, values = near
    else:
        keys, values = load_halo(
            chunk, key_start, value_start, row, column,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK, WINDOW, CONTENT, ROWS, COLS,
        )  # fmt: skip
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    row_logits = spread_logits(
        relative, tile_row, chunk * ROWS + tl.arange(0, ROWS), row - WINDOW // 2,
        HEIGHT, WINDOW, MASK, 0,
    )  # fmt: skip
    logits = row_logits[:, :, None] + column_logits[:, None, :]
    logits = tl.reshape(logits, (TILE, ROWS * COLS))
    if CONTENT:
        logits = dot(query, tl.trans(keys), logits)
    return keys, values, logits


@triton.jit
def weigh(
    chunk, query, cotangent, near, relative, column_logits, log_sums, key_start, value_start,
    row, column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr,
    SCALE2: tl.constexpr,
):  # fmt: skip
    """Keys, weights and the weights' gradients of a tile and a chunk, as `meet` has them."""
    keys, values, logits = meet(
        chunk, query, near, relative, column_logits, key_start, value_start, row, column,
        HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK, WINDOW, MASK, CONTENT, ROWS, COLS, CHUNKS,
    )  # fmt: skip
    # At most 1 but for rounding, which would be an overflow where logits are huge.
    weights = tl.exp2(tl.minimum(logits * SCALE2 - log_sums[:, None], 0.0))
    return keys, weights, dot(cotangent, tl.trans(values))


@triton.jit
def pull_logits(by_offset, slots, WINDOW: tl.constexpr, SCALE2: tl.constexpr):
    """Logits with the scale of a chunk's queries for the columns of a tile: [TILE_W, queries].

    Args:
      by_offset: products of `load_column_table` and the queries.
      slots: [queries], the queries' places in the halo along the row.
    """
    if WINDOW < LEAST_ROWS // 2:  # the other half is zero
        by_offset = tl.sum(tl.reshape(by_offset, (2, LEAST_ROWS // 2, slots.shape[0])), 0)
    offset = tl.arange(0, TILE_W)[:, None] - slots[None, :] + (WINDOW - 1)
    counts = (offset >= 0) & (offset < WINDOW)
    logits = tl.gather(by_offset, tl.where(counts, offset, 0), 0)
    return tl.where(counts, logits * SCALE2, OUTSIDE)


@triton.jit
def load_column_table(
    columns_start, head, member: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    TABLES: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """The columns' table of one head, a group's `member`, [LEAST_ROWS, BLOCK].

    Zero but for the head's own channels, of which columns own the second half.
    """
    half: tl.constexpr = DIM // 2
    offset = tl.arange(0, LEAST_ROWS)[:, None]
    dim = tl.arange(0, BLOCK)[None, :] - member * DIM
    place = place_in_table(offset, head, dim - half, HEADS, DIM, PER_HEAD)
    counts = TABLES & (offset < WINDOW) & (dim >= half) & (dim < DIM)
    return tl.load(columns_start + place, mask=counts, other=0.0)


@triton.jit
def load_row_keys(
    rows_start, head, member: tl.constexpr, first,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    TABLES: tl.constexpr, PER_HEAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """[ROWS, TILE, BLOCK]: the row embedding between a halo row's queries and a tile's keys.

    first: the first of the halo's rows. Of one head, a group's `member`: zero but for the first
    half of its channels, and outside the window.
    """
    half: tl.constexpr = DIM // 2
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    slots = first + tl.arange(0, ROWS)
    offset = tile_row[None, :, None] - slots[:, None, None] + (WINDOW - 1)
    dim = tl.arange(0, BLOCK)[None, None, :] - member * DIM
    place = place_in_table(offset, head, dim, HEADS, DIM, PER_HEAD)
    counts = TABLES & (offset >= 0) & (offset < WINDOW) & (dim >= 0) & (dim < half)
    return tl.load(rows_start + place, mask=counts, other=0.0)
