"""The kernels, in Triton: forward, the gradient of queries and tables, that of keys and values.

A program owns a strip of pixels, `TILE_H` rows high and as wide as the image, and `GROUP` heads. It
goes through the strip tile by tile: `TILE` pixels against the `ROWS * COLS` pixels of a chunk of
their halo, one chunk for windows up to 7 except for the gradients of wide heads' keys. Images are
contiguous, [B, H, W, N, D] or, where query, key and value share an array, [B, H, W, 3, N, D];
log_sums (base 2) and deltas are [B, N, H, W].

What is costly is not the products but what is done to every logit of a tile, and the reading of
pixels of which one head is wanted (measured: docs/performance.md). So the relative logits are what
the products' sums begin with, the scale is applied where the exponent is formed, and the tile's
pixels are always the rows of a product, whose results can then be the left side of the next. Every
sum has a fixed order, and no program writes what another writes.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

from sasa_jax.ops.local_attention.gpu_triton.tiles import (
    LOWEST,
    OUTSIDE,
    SLOTS,
    TILE,
    TILE_H,
    TILE_W,
    dot,
    inside_image,
    load_pixels,
    load_row_keys,
    load_tables,
    meet,
    pixels_of,
    pull_logits,
    relative_logits,
    spread_logits,
    store_pixels,
    strip_of_program,
)


@triton.jit
def local_attention_forward(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr, output_ptr, log_sum_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, DIM_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Output, and the logarithm of each query's sum of exponentials, by an online softmax."""
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    tile_row, tile_column = pixels_of(TILE_H, TILE_W)
    row_table, column_table = load_tables(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD,
    )  # fmt: skip
    for step in range((WIDTH + TILE_W - 1) // TILE_W * GROUP):
        column = step // GROUP * TILE_W
        head = first_head + step % GROUP
        start = image * (HEIGHT * WIDTH * HEADS * DIM) + head * DIM
        query_start = image * (HEIGHT * WIDTH * PITCH) + head * DIM
        key_start, value_start = query_start + APART, query_start + 2 * APART
        query = load_pixels(
            query_ptr + query_start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
        )  # fmt: skip
        row_relative, column_relative = relative_logits(query, row_table, column_table)
        column_logits = spread_logits(
            column_relative, tile_column, tl.arange(0, COLS), column - WINDOW // 2,
            WIDTH, WINDOW, MASK,
        )  # fmt: skip
        largest = tl.full((TILE,), LOWEST, tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        output = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        for chunk in range(CHUNKS):
            _, values, logits = meet(
                chunk, query, key_ptr + key_start, value_ptr + value_start, row_relative,
                column_logits, row, column, HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK, WINDOW, MASK,
                CONTENT, ROWS, COLS,
            )  # fmt: skip
            before = largest
            largest = tl.maximum(before, tl.max(logits, 1))
            weights = tl.exp2(logits * SCALE2 - (largest * SCALE2)[:, None])
            shrink = tl.exp2((before - largest) * SCALE2)
            total = total * shrink + tl.sum(weights, 1)
            output = dot(weights.to(values.dtype), values, output * shrink[:, None])
        store_pixels(
            output_ptr + start, row, column, TILE_H, TILE_W, output * (1 / total)[:, None],
            HEIGHT, WIDTH, HEADS * DIM, DIM, DIM_BLOCK,
        )  # fmt: skip
        rows, columns = row + tile_row, column + tile_column
        tl.store(
            log_sum_ptr + (image * HEADS + head) * (HEIGHT * WIDTH) + rows * WIDTH + columns,
            largest * SCALE2 + tl.log2(total),
            mask=inside_image(rows, columns, HEIGHT, WIDTH),
        )


@triton.jit
def local_attention_backward_queries(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr,
    log_sum_ptr, cotangent_ptr, query_out_ptr, delta_ptr, table_out_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, DIM_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, and the tables' [K, D], rows' half then columns', by program.

    Also deltas, the sums of weight times weight's gradient, for the other backward kernel. They are
    made from the weights: the rounding of a 16-bit output would shift all logits' gradients.
    """
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    tile_row, tile_column = pixels_of(TILE_H, TILE_W)
    offset = tl.arange(0, SLOTS)[None, :]
    row_table_out = tl.zeros((SLOTS, DIM_BLOCK), tl.float32)
    column_table_out = tl.zeros((SLOTS, DIM_BLOCK), tl.float32)
    row_table, column_table = load_tables(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD,
    )  # fmt: skip
    for step in range((WIDTH + TILE_W - 1) // TILE_W * GROUP):
        column = step // GROUP * TILE_W
        head = first_head + step % GROUP
        start = image * (HEIGHT * WIDTH * HEADS * DIM) + head * DIM
        query_start = image * (HEIGHT * WIDTH * PITCH) + head * DIM
        key_start, value_start = query_start + APART, query_start + 2 * APART
        rows, columns = row + tile_row, column + tile_column
        inside = inside_image(rows, columns, HEIGHT, WIDTH)
        places = (image * HEADS + head) * (HEIGHT * WIDTH) + rows * WIDTH + columns
        query = load_pixels(
            query_ptr + query_start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
        )  # fmt: skip
        cotangent = load_pixels(
            cotangent_ptr + start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, HEADS * DIM, DIM, DIM_BLOCK,
        )  # fmt: skip
        log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
        row_relative, column_relative = relative_logits(query, row_table, column_table)
        column_logits = spread_logits(
            column_relative, tile_column, tl.arange(0, COLS), column - WINDOW // 2,
            WIDTH, WINDOW, MASK,
        )  # fmt: skip
        # With one chunk, the compiler finds that the second loop repeats the first.
        delta = tl.zeros((TILE,), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        for chunk in range(CHUNKS):
            _, values, logits = meet(
                chunk, query, key_ptr + key_start, value_ptr + value_start, row_relative,
                column_logits, row, column, HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK, WINDOW, MASK,
                CONTENT, ROWS, COLS,
            )  # fmt: skip
            # At most 1 but for rounding, which would be an overflow where logits are huge.
            weights = tl.exp2(tl.minimum(logits * SCALE2 - log_sums[:, None], 0.0))
            delta += tl.sum(weights * dot(cotangent, tl.trans(values)), 1)
            total += tl.sum(weights, 1)
        # The weights' sum is 1 but for the log-sum's rounding, and 0 beyond the image.
        delta /= tl.maximum(total, 0.5)
        query_out = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        row_out = tl.zeros((TILE, SLOTS), tl.float32)  # of the logits, by offset
        column_sums = tl.zeros((TILE, COLS), tl.float32)
        for chunk in range(CHUNKS):
            keys, values, logits = meet(
                chunk, query, key_ptr + key_start, value_ptr + value_start, row_relative,
                column_logits, row, column, HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK, WINDOW, MASK,
                CONTENT, ROWS, COLS,
            )  # fmt: skip
            weights = tl.exp2(tl.minimum(logits * SCALE2 - log_sums[:, None], 0.0))
            logits_out = weights * (dot(cotangent, tl.trans(values)) - delta[:, None])
            if CONTENT:
                query_out = dot(logits_out.to(keys.dtype), keys, query_out)
            if TABLES:
                spread = tl.reshape(logits_out, (TILE, ROWS, COLS))
                column_sums += tl.sum(spread, 1)
                slot = offset + tile_row[:, None] - chunk * ROWS
                counts = (slot >= 0) & (slot < ROWS) & (offset < WINDOW)
                by_offset = tl.gather(tl.sum(spread, 2), tl.where(counts, slot, 0), 1)
                row_out += tl.where(counts, by_offset, 0.0)
        if TABLES:
            counts = offset < WINDOW
            slot = tl.where(counts, offset + tile_column[:, None], 0)
            column_out = tl.where(counts, tl.gather(column_sums, slot, 1), 0.0)
            row_out, column_out = row_out.to(query.dtype), column_out.to(query.dtype)
            query_out = dot(row_out, row_table, query_out)
            query_out = dot(column_out, column_table, query_out)
            row_table_out = dot(tl.trans(row_out), query, row_table_out)
            column_table_out = dot(tl.trans(column_out), query, column_table_out)
        store_pixels(
            query_out_ptr + query_start, row, column, TILE_H, TILE_W, query_out * SCALE,
            HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
        )  # fmt: skip
        tl.store(delta_ptr + places, delta, mask=inside)
    if TABLES:
        offset = tl.arange(0, SLOTS)[:, None]
        dim = tl.arange(0, DIM_BLOCK)[None, :]
        start = tl.program_id(0).to(tl.int64) * (WINDOW * DIM)
        tl.store(
            table_out_ptr + start + offset * DIM + dim,
            tl.where(dim < DIM // 2, row_table_out, column_table_out) * SCALE,
            mask=(offset < WINDOW) & (dim < DIM),
        )


@triton.jit
def local_attention_backward_keys(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr,
    log_sum_ptr, delta_ptr, cotangent_ptr, key_out_ptr, value_out_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, DIM_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: a tile of keys sums up what the queries around it send.

    A query outside the image is read as zeros: its cotangent and its delta make it count for 0.
    """
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    down, across = pixels_of(ROWS, COLS)
    column_table = load_tables(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD,
    )[1]  # fmt: skip
    row_keys = load_row_keys(
        row_table_ptr, first_head, 0, HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD, ROWS
    )
    for step in range((WIDTH + TILE_W - 1) // TILE_W * GROUP):
        column = step // GROUP * TILE_W
        head = first_head + step % GROUP
        start = image * (HEIGHT * WIDTH * HEADS * DIM) + head * DIM
        query_start = image * (HEIGHT * WIDTH * PITCH) + head * DIM
        key_start, value_start = query_start + APART, query_start + 2 * APART
        value = load_pixels(
            value_ptr + value_start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
        )  # fmt: skip
        key = value
        if CONTENT:
            key = load_pixels(
                key_ptr + key_start, row, column, TILE_H, TILE_W,
                HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
            )  # fmt: skip
        key_out = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        value_out = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        for chunk in range(CHUNKS):
            first_row, first_column = row - WINDOW // 2 + chunk * ROWS, column - WINDOW // 2
            queries = load_pixels(
                query_ptr + query_start, first_row, first_column, ROWS, COLS,
                HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
            )  # fmt: skip
            cotangents = load_pixels(
                cotangent_ptr + start, first_row, first_column, ROWS, COLS,
                HEIGHT, WIDTH, HEADS * DIM, DIM, DIM_BLOCK,
            )  # fmt: skip
            rows, columns = first_row + down, first_column + across
            inside = inside_image(rows, columns, HEIGHT, WIDTH)
            places = (image * HEADS + head) * (HEIGHT * WIDTH) + rows * WIDTH + columns
            log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
            if CHUNKS > 1:
                row_keys = load_row_keys(
                    row_table_ptr, first_head, chunk * ROWS,
                    HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD, ROWS,
                )  # fmt: skip
            # A row of the halo at a time, within which a key's row embedding is the same.
            by_row = tl.permute(tl.reshape(queries, (ROWS, COLS, DIM_BLOCK)), (0, 2, 1))
            logits = tl.zeros((ROWS, TILE, COLS), tl.float32)
            if CONTENT:
                keys = tl.broadcast_to(key[None, :, :], (ROWS, TILE, DIM_BLOCK))
                logits = dot(keys, by_row, logits)
            logits = dot(row_keys, by_row, logits)
            logits = tl.reshape(tl.permute(logits, (1, 0, 2)), (TILE, ROWS * COLS))
            by_offset = dot(column_table, tl.trans(queries))
            if WINDOW < SLOTS // 2:  # the other half is zero
                by_offset = tl.sum(tl.reshape(by_offset, (2, SLOTS // 2, ROWS * COLS)), 0)
            column_logits = pull_logits(by_offset, tl.arange(0, TILE_W), across, WINDOW)
            column_logits = column_logits * SCALE2 - log_sums[None, :]
            column_logits = column_logits[None, :, :]
            column_logits = tl.broadcast_to(column_logits, (TILE_H, TILE_W, ROWS * COLS))
            logits = logits * SCALE2 + tl.reshape(column_logits, (TILE, ROWS * COLS))
            offset = tile_row[:, None] - (chunk * ROWS + down)[None, :] + (WINDOW - 1)
            logits = tl.where((offset >= 0) & (offset < WINDOW), logits, OUTSIDE)
            weights = tl.exp2(tl.minimum(logits, 0.0))
            value_out = dot(weights.to(cotangents.dtype), cotangents, value_out)
            if CONTENT:
                deltas = tl.load(delta_ptr + places, mask=inside, other=0.0)
                products = dot(value, tl.trans(cotangents))
                logits_out = weights * (products - deltas[None, :])
                key_out = dot(logits_out.to(queries.dtype), queries, key_out)
        # A packed array's gradients are in one, too.
        value_to = key_out_ptr if APART else value_out_ptr
        store_pixels(
            value_to + value_start, row, column, TILE_H, TILE_W, value_out,
            HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
        )  # fmt: skip
        if CONTENT:
            store_pixels(
                key_out_ptr + key_start, row, column, TILE_H, TILE_W, key_out * SCALE,
                HEIGHT, WIDTH, PITCH, DIM, DIM_BLOCK,
            )  # fmt: skip
