"""The kernels, in Triton: forward, the gradient of queries and tables, that of keys and values.

A program owns a strip of pixels, `TILE_H` rows high and as wide as the image, and `GROUP` heads. It
goes through the strip tile by tile: `TILE` pixels against the `ROWS * COLS` pixels of a chunk of
their halo, one chunk for windows up to 7. Images are contiguous, [B, H, W, N, D]; log_sums (base 2)
and deltas are [B, N, H, W].

Rows and columns of a window never mix but in a sum, so that relative logits, window and image
border are all put into two small arrays, [TILE, rows] and [TILE, columns], spread over the tile of
logits. Every sum has a fixed order, and no program writes what another writes.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

from sasa_jax.ops.local_attention.gpu_triton.tiles import (
    OUTSIDE,
    SLOTS,
    TILE,
    TILE_H,
    TILE_W,
    chunk_pixels,
    dot,
    inside_image,
    load_pixels,
    load_tables,
    meet,
    pull_logits,
    relative_logits,
    spread_logits,
    store_pixels,
    strip_of_program,
    tile_pixels,
)


@triton.jit
def local_attention_forward(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr, output_ptr, log_sum_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, GROUP: tl.constexpr,
    DIM_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Output, and the logarithm of each query's sum of exponentials, by an online softmax."""
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    tile_row, tile_column = tile_pixels(0, 0)
    row_table, column_table = load_tables(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD,
    )  # fmt: skip
    for step in range((WIDTH + TILE_W - 1) // TILE_W * GROUP):
        column = step // GROUP * TILE_W
        head = first_head + step % GROUP
        start = image * (HEIGHT * WIDTH * HEADS * DIM) + head * DIM
        rows, columns = row + tile_row, column + tile_column
        query = load_pixels(query_ptr + start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK)
        row_relative, column_relative = relative_logits(query, row_table, column_table)
        column_logits = spread_logits(
            column_relative, tile_column, tl.arange(0, COLS), column - WINDOW // 2,
            WIDTH, WINDOW, SCALE2, MASK,
        )  # fmt: skip
        largest = tl.full((TILE,), 2 * OUTSIDE, tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        output = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        for chunk in range(CHUNKS):
            _, values, logits = meet(
                chunk, query, key_ptr + start, value_ptr + start, row_relative, column_logits,
                row, column, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK, WINDOW, SCALE2, MASK, CONTENT,
                ROWS, COLS,
            )  # fmt: skip
            before = largest
            largest = tl.maximum(before, tl.max(logits, 1))
            weights = tl.exp2(logits - largest[:, None])
            shrink = tl.exp2(before - largest)
            total = total * shrink + tl.sum(weights, 1)
            output = dot(weights.to(values.dtype), values, output * shrink[:, None])
        store_pixels(
            output_ptr + start, rows, columns, output / total[:, None],
            HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK,
        )  # fmt: skip
        tl.store(
            log_sum_ptr + (image * HEADS + head) * (HEIGHT * WIDTH) + rows * WIDTH + columns,
            largest + tl.log2(total),
            mask=inside_image(rows, columns, HEIGHT, WIDTH),
        )


@triton.jit
def local_attention_backward_queries(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr, log_sum_ptr, cotangent_ptr,
    query_out_ptr, delta_ptr, table_out_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, GROUP: tl.constexpr,
    DIM_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, and the tables' [K, D], rows' half then columns', by program.

    Also deltas, the sums of weight times weight's gradient, for the other backward kernel. They are
    made from the weights: the rounding of a 16-bit output would shift all logits' gradients.
    """
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    tile_row, tile_column = tile_pixels(0, 0)
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
        rows, columns = row + tile_row, column + tile_column
        inside = inside_image(rows, columns, HEIGHT, WIDTH)
        places = (image * HEADS + head) * (HEIGHT * WIDTH) + rows * WIDTH + columns
        query = load_pixels(query_ptr + start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK)
        cotangent = load_pixels(
            cotangent_ptr + start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK
        )
        log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
        row_relative, column_relative = relative_logits(query, row_table, column_table)
        column_logits = spread_logits(
            column_relative, tile_column, tl.arange(0, COLS), column - WINDOW // 2,
            WIDTH, WINDOW, SCALE2, MASK,
        )  # fmt: skip
        # With one chunk, the compiler finds that the second loop repeats the first.
        delta = tl.zeros((TILE,), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        for chunk in range(CHUNKS):
            _, values, logits = meet(
                chunk, query, key_ptr + start, value_ptr + start, row_relative, column_logits,
                row, column, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK, WINDOW, SCALE2, MASK, CONTENT,
                ROWS, COLS,
            )  # fmt: skip
            # At most 1 but for rounding, which would be an overflow where logits are huge.
            weights = tl.exp2(tl.minimum(logits - log_sums[:, None], 0.0))
            products = dot(cotangent, tl.trans(values))
            delta += tl.sum(weights * products, 1)
            total += tl.sum(weights, 1)
        # The weights' sum is 1 but for the log-sum's rounding, and 0 beyond the image.
        delta /= tl.maximum(total, 0.5)
        query_out = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        row_out = tl.zeros((TILE, SLOTS), tl.float32)  # of the logits, by offset
        column_sums = tl.zeros((TILE, COLS), tl.float32)
        for chunk in range(CHUNKS):
            keys, values, logits = meet(
                chunk, query, key_ptr + start, value_ptr + start, row_relative, column_logits,
                row, column, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK, WINDOW, SCALE2, MASK, CONTENT,
                ROWS, COLS,
            )  # fmt: skip
            weights = tl.exp2(tl.minimum(logits - log_sums[:, None], 0.0))
            products = dot(cotangent, tl.trans(values))
            logits_out = weights * (products - delta[:, None])
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
            row_sums, column_sums = row_out.to(query.dtype), column_out.to(query.dtype)
            query_out = dot(row_sums, row_table, query_out)
            query_out = dot(column_sums, column_table, query_out)
            row_table_out = dot(tl.trans(row_sums), query, row_table_out)
            column_table_out = dot(tl.trans(column_sums), query, column_table_out)
        store_pixels(
            query_out_ptr + start, rows, columns, query_out * SCALE,
            HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK,
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
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, GROUP: tl.constexpr,
    DIM_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: a tile of keys sums up what the queries around it send.

    A query outside the image is read as zeros: its cotangent and its delta make it count for 0.
    """
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    reach: tl.constexpr = WINDOW // 2
    tile_row, tile_column = tile_pixels(0, 0)
    pixel = tl.arange(0, ROWS * COLS)
    row_table, column_table = load_tables(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, DIM_BLOCK, WINDOW, TABLES, PER_HEAD,
    )  # fmt: skip
    for step in range((WIDTH + TILE_W - 1) // TILE_W * GROUP):
        column = step // GROUP * TILE_W
        head = first_head + step % GROUP
        start = image * (HEIGHT * WIDTH * HEADS * DIM) + head * DIM
        rows, columns = row + tile_row, column + tile_column
        value = load_pixels(value_ptr + start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK)
        key = value
        if CONTENT:
            key = load_pixels(key_ptr + start, rows, columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK)
        key_out = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        value_out = tl.zeros((TILE, DIM_BLOCK), tl.float32)
        for chunk in range(CHUNKS):
            query_rows, query_columns = chunk_pixels(
                row - reach + chunk * ROWS, column - reach, ROWS, COLS
            )
            queries = load_pixels(
                query_ptr + start, query_rows, query_columns, HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK
            )
            cotangents = load_pixels(
                cotangent_ptr + start, query_rows, query_columns,
                HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK,
            )  # fmt: skip
            inside = inside_image(query_rows, query_columns, HEIGHT, WIDTH)
            places = (image * HEADS + head) * (HEIGHT * WIDTH) + query_rows * WIDTH + query_columns
            log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
            deltas = tl.load(delta_ptr + places, mask=inside, other=0.0)
            row_relative, column_relative = relative_logits(queries, row_table, column_table)
            row_logits = pull_logits(
                row_relative, tl.arange(0, TILE_H), chunk * ROWS + pixel // COLS, WINDOW, SCALE2
            )
            column_logits = pull_logits(
                column_relative, tl.arange(0, TILE_W), pixel % COLS, WINDOW, SCALE2
            )
            logits = row_logits[:, :, None] + column_logits[:, None, :]
            if CONTENT:
                products = dot(queries, tl.trans(key))
                logits += tl.reshape(products, (ROWS * COLS, TILE_H, TILE_W)) * SCALE2
            # Before they are reshaped: the compiler would repeat the exponentials for each use.
            weights = tl.exp2(tl.minimum(logits - log_sums[:, None, None], 0.0))
            weights = tl.reshape(weights, (ROWS * COLS, TILE))
            value_out = dot(tl.trans(weights.to(cotangents.dtype)), cotangents, value_out)
            if CONTENT:
                products = dot(cotangents, tl.trans(value))
                logits_out = weights * (products - deltas[:, None])
                key_out = dot(tl.trans(logits_out.to(queries.dtype)), queries, key_out)
        store_pixels(
            value_out_ptr + start, rows, columns, value_out,
            HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK,
        )  # fmt: skip
        if CONTENT:
            store_pixels(
                key_out_ptr + start, rows, columns, key_out * SCALE,
                HEIGHT, WIDTH, HEADS, DIM, DIM_BLOCK,
            )  # fmt: skip
