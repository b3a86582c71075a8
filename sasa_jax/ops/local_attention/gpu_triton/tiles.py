"""Steps on one tile that the kernels share, in Triton; `kernels` says how an image is cut.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

TILE_H = tl.constexpr(2)
TILE_W = tl.constexpr(8)
TILE = tl.constexpr(16)
# The logit of a slot that does not count, and what the largest logit begins as: with the first far
# below the second, exponentials of such slots are 0 even where a query has no other.
OUTSIDE = tl.constexpr(-(2.0**100))
LOWEST = tl.constexpr(-(2.0**80))


@triton.jit
def dot(a, b, total=None):
    """total + a b, summed in float32; float32 is not multiplied as tf32."""
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def place_of_program(
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    TILES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Image (64 bits: offsets of images may need them), first row, column and head of a program.

    Heads come first, so that programs that run at a time share what they read.
    """
    program = tl.program_id(0)
    groups = HEADS // GROUP
    across = (WIDTH + TILE_W - 1) // TILE_W
    down = (HEIGHT + TILE_H * TILES - 1) // (TILE_H * TILES)
    head = program % groups * GROUP
    column = program // groups % across * TILE_W
    row = program // (groups * across) % down * (TILE_H * TILES)
    return (program // (groups * across * down)).to(tl.int64), row, column, head


@triton.jit
def pixels_of(DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Rows and columns, [DOWN * ACROSS], of a rectangle's pixels, row by row."""
    pixel = tl.arange(0, DOWN * ACROSS)
    return pixel // ACROSS, pixel % ACROSS


@triton.jit
def inside_image(rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < WIDTH)


@triton.jit
def pointers_to(
    start, row, column, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """To a rectangle of pixels that begins at (row, column), and which are there.

    [DOWN * ACROSS, BLOCK] both, of which CHANNELS count. PITCH: numbers from a pixel to the next.
    Distances within the rectangle are constants, which cost no instructions of their own.
    """
    down, across = pixels_of(DOWN, ACROSS)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = inside_image(row + down, column + across, HEIGHT, WIDTH)
    place = (row * WIDTH + column) * PITCH
    place += ((down * WIDTH + across) * PITCH)[:, None] + channel
    return start + place, inside[:, None] & (channel < CHANNELS)


@triton.jit
def load_tile(
    start, row, column, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile's pixels, [TILE, BLOCK]; zero outside the image and beyond CHANNELS."""
    pointers, inside = pointers_to(
        start, row, column, TILE_H, TILE_W, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
    )
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_tile(
    start, row, column, content, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The reverse of `load_tile`."""
    pointers, inside = pointers_to(
        start, row, column, TILE_H, TILE_W, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
    )
    tl.store(pointers, content.to(start.dtype.element_ty), mask=inside)


@triton.jit
def load_row(
    start, row, column, COLS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    PITCH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of a halo, [COLS, BLOCK], that begins at (row, column); zero as in a tile."""
    pointers, inside = pointers_to(
        start, row, column, 1, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
    )
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def load_rows(
    start, row, column, COUNT: tl.constexpr, COLS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, PITCH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """COUNT rows of a halo, one below the other."""
    rows = ()
    for place in tl.static_range(COUNT):
        one = load_row(
            start, row + place, column, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
        )
        rows = rows + (one,)
    return rows


@triton.jit
def of_member(pixels, member, GROUP: tl.constexpr, DIM: tl.constexpr):
    """Pixels, [..., BLOCK], with all heads but one as zeros: the others drop out of products."""
    if GROUP > 1:
        channel = tl.arange(0, pixels.shape[1])[None, :]
        pixels = tl.where(channel // DIM == member, pixels, 0.0).to(pixels.dtype)
    return pixels


@triton.jit
def with_member(pixels, others, member, GROUP: tl.constexpr, DIM: tl.constexpr):
    """`others`, [..., BLOCK], with one head from `pixels`."""
    if GROUP > 1:
        channel = tl.arange(0, pixels.shape[1])[None, :]
        pixels = tl.where(channel // DIM == member, pixels, others)
    return pixels


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
    place = offset * half + dim
    if PER_HEAD:
        place = (offset * HEADS + first_head + channel // DIM) * half + dim
    counts = TABLES & (offset < WINDOW) & (channel < GROUP * DIM)
    by_row, first_half = slot < SLOTS, dim < half
    rows = tl.load(rows_start + place, mask=counts & by_row & first_half, other=0.0)
    columns = tl.load(
        columns_start + place - half, mask=counts & (by_row == 0) & (first_half == 0), other=0.0
    )
    return rows + columns


@triton.jit
def spread_logits(
    relative, place, slots, first,
    LIMIT: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, FROM: tl.constexpr,
):  # fmt: skip
    """Logits of a tile's queries along one axis, [TILE, slots], from those by offset.

    Args:
      relative: [TILE, 2 * SLOTS], products of queries and `load_table`, of which the axis begins
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
def slices_of(block, COUNT: tl.constexpr):
    """The first COUNT slices of [rows, a power of two, columns] along its middle axis."""
    rows: tl.constexpr = block.shape[0]
    width: tl.constexpr = block.shape[1]
    columns: tl.constexpr = block.shape[2]
    parts = (block,)
    for level in tl.static_range(5):
        if width >> level > 1:
            halves = ()
            for place in tl.static_range(1 << level):
                pair = tl.reshape(parts[place], (rows, 2, width >> (level + 1), columns))
                left, right = tl.split(tl.permute(pair, (0, 2, 3, 1)))
                halves = halves + (left, right)
            parts = halves
    found = ()
    for place in tl.static_range(COUNT):
        found = found + (tl.reshape(parts[place], (rows, columns)),)
    return found


@triton.jit
def logits_of(query, keys, relative, COUNT: tl.constexpr, CONTENT: tl.constexpr):
    """Without the scale, [TILE, COLS] for each row of a halo.

    Args:
      query: [TILE, BLOCK].
      keys, row_logits: for each row, [COLS, BLOCK] and [TILE].
      column_logits: [TILE, COLS].
    """
    found = ()
    for place in tl.static_range(COUNT):
        logits = relative[place]
        if CONTENT:
            logits = dot(query, tl.trans(keys[place]), logits)
        found = found + (logits,)
    return found


@triton.jit
def load_column_table(
    columns_start, first_head,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    SLOTS: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The columns' table head by head, [GROUP * SLOTS, BLOCK], at least 16 rows.

    A head's rows are zero but for its own channels, of which columns own the second half.
    """
    COUNT: tl.constexpr = GROUP * SLOTS if GROUP * SLOTS > 16 else 16
    slot = tl.arange(0, COUNT)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    half: tl.constexpr = DIM // 2
    member, offset, dim = slot // SLOTS, slot % SLOTS, channel % DIM
    place = offset * half + dim - half
    if PER_HEAD:
        place = (offset * HEADS + first_head + member) * half + dim - half
    counts = TABLES & (offset < WINDOW) & (member < GROUP) & (channel // DIM == member)
    return tl.load(columns_start + place, mask=counts & (dim >= half), other=0.0)


@triton.jit
def load_row_key(
    rows_start, first_head, row,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
    TABLES: tl.constexpr, PER_HEAD: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The row embedding between queries in a row of a tile's halo and the tile, [TILE, BLOCK].

    Zero outside the window and on the columns' half of each head.
    """
    half: tl.constexpr = DIM // 2
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    offset = tile_row[:, None] - row + (WINDOW - 1)
    channel = tl.arange(0, BLOCK)[None, :]
    dim = channel % DIM
    place = offset * half + dim
    if PER_HEAD:
        place = (offset * HEADS + first_head + channel // DIM) * half + dim
    counts = TABLES & (offset >= 0) & (offset < WINDOW) & (dim < half) & (channel < GROUP * DIM)
    return tl.load(rows_start + place, mask=counts, other=0.0)


@triton.jit
def pull_logits(
    by_slot, log_sums, WINDOW: tl.constexpr, SLOTS: tl.constexpr, GROUP: tl.constexpr,
    COLS: tl.constexpr, SCALE2: tl.constexpr,
):  # fmt: skip
    """Logits of a halo row's queries for a tile's columns of keys: [TILE_W, COLS] for each head.

    With the scale, and less the queries' log-sums.

    Args:
      by_slot: products of `load_column_table` and the queries: [GROUP * SLOTS, COLS].
      log_sums: [GROUP, COLS].
    """
    target = tl.arange(0, GROUP * TILE_W)
    offset = (target % TILE_W)[:, None] - tl.arange(0, COLS)[None, :] + (WINDOW - 1)
    counts = (offset >= 0) & (offset < WINDOW)
    slot = (target // TILE_W * SLOTS)[:, None] + offset
    logits = tl.gather(by_slot, tl.where(counts, slot, 0), 0)
    logits = tl.where(counts, logits * SCALE2, OUTSIDE)
    logits = tl.reshape(logits, (GROUP, TILE_W, COLS)) - log_sums[:, None, :]
    return slices_of(tl.permute(logits, (1, 0, 2)), GROUP)
