"""The kernels, in Triton: forward, the gradient of queries and tables, that of keys and values.

A program owns a strip of pixels, `TILE_H` rows high and as wide as the image, and a group of heads
that lie side by side: of narrow ones as many as fill the `BLOCK` channels that a product sums over
at least. It goes through the strip tile by tile: `TILE` pixels against the `ROWS * COLS` pixels of
a chunk of their halo, one chunk for windows up to 7 except for the gradients of keys, which take it
in `PARTS`, or in chunks where heads are wide. What is read of a pixel is read once for the whole
group, and the heads are told apart by zeros: a tile's pixels with zeros for all heads but one leave
the others out of a product. Images are contiguous, [B, H, W, N, D] or, where query, key and value
share an array, [B, H, W, 3, N, D]; log_sums (base 2) and deltas are [B, N, H, W].

What is costly is not the products but what is done to every logit of a tile, and the reading of
pixels of which few heads are wanted (measured: docs/performance.md). So the relative logits are
what the products' sums begin with, the scale is applied where the exponent is formed, and the
tile's pixels are always the rows of a product, whose results can then be the left side of the next.
Every sum has a fixed order, and no program writes what another writes.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

from sasa_jax.ops.local_attention.gpu_triton.tiles import (
    LOWEST,
    MOST_ROWS,
    OUTSIDE,
    TILE,
    TILE_H,
    TILE_W,
    dot,
    inside_image,
    load_column_table,
    load_halo,
    load_pixels,
    load_row_keys,
    load_table,
    meet,
    of_member,
    pixels_of,
    pull_logits,
    spread_logits,
    store_pixels,
    strip_of_program,
    weigh,
    with_member,
)


@triton.jit
def local_attention_forward(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr, output_ptr, log_sum_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Output, and the logarithm of each query's sum of exponentials, by an online softmax."""
    CHANNELS: tl.constexpr = GROUP * DIM
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    start = image * (HEIGHT * WIDTH * HEADS * DIM) + first_head * DIM
    query_start = image * (HEIGHT * WIDTH * PITCH) + first_head * DIM
    key_start = key_ptr + query_start + APART
    value_start = value_ptr + query_start + 2 * APART
    table = load_table(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, BLOCK, WINDOW, SLOTS, TABLES, PER_HEAD, GROUP,
    )  # fmt: skip
    tile_row, tile_column = pixels_of(TILE_H, TILE_W)
    for column in range(0, WIDTH, TILE_W):
        rows, columns = row + tile_row, column + tile_column
        queries = load_pixels(
            query_ptr + query_start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        near = ()
        if CHUNKS == 1:
            near = load_halo(
                0, key_start, value_start, row, column,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK, WINDOW, CONTENT, ROWS, COLS,
            )  # fmt: skip
        outputs = tl.zeros((TILE, BLOCK), tl.float32)
        for member in tl.static_range(GROUP):
            query = of_member(queries, member, GROUP, DIM)
            relative = dot(query, tl.trans(table))
            column_logits = spread_logits(
                relative, tile_column, tl.arange(0, COLS), column - WINDOW // 2,
                WIDTH, WINDOW, MASK, SLOTS,
            )  # fmt: skip
            largest = tl.full((TILE,), LOWEST, tl.float32)
            total = tl.zeros((TILE,), tl.float32)
            output = tl.zeros((TILE, BLOCK), tl.float32)
            for chunk in range(CHUNKS):
                _keys, values, logits = meet(
                    chunk, query, near, relative, column_logits, key_start, value_start,
                    row, column, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK, WINDOW, MASK, CONTENT,
                    ROWS, COLS, CHUNKS,
                )  # fmt: skip
                before = largest
                largest = tl.maximum(before, tl.max(logits, 1))
                weights = tl.exp2(logits * SCALE2 - (largest * SCALE2)[:, None])
                shrink = tl.exp2((before - largest) * SCALE2)
                total = total * shrink + tl.sum(weights, 1)
                output = dot(weights.to(values.dtype), values, output * shrink[:, None])
            outputs = with_member(output * (1 / total)[:, None], outputs, member, GROUP, DIM)
            places = (image * HEADS + first_head + member) * (HEIGHT * WIDTH)
            tl.store(
                log_sum_ptr + places + rows * WIDTH + columns,
                largest * SCALE2 + tl.log2(total),
                mask=inside_image(rows, columns, HEIGHT, WIDTH),
            )
        store_pixels(
            output_ptr + start, row, column, TILE_H, TILE_W, outputs,
            HEIGHT, WIDTH, HEADS * DIM, CHANNELS, BLOCK,
        )  # fmt: skip


@triton.jit
def local_attention_backward_queries(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr,
    log_sum_ptr, cotangent_ptr, query_out_ptr, delta_ptr, table_out_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, and the tables' by program, [K, GROUP, D], rows' half first.

    Also deltas, the sums of weight times weight's gradient, for the other backward kernel. They are
    made from the weights: the rounding of a 16-bit output would shift all logits' gradients.
    """
    CHANNELS: tl.constexpr = GROUP * DIM
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    start = image * (HEIGHT * WIDTH * HEADS * DIM) + first_head * DIM
    query_start = image * (HEIGHT * WIDTH * PITCH) + first_head * DIM
    key_start = key_ptr + query_start + APART
    value_start = value_ptr + query_start + 2 * APART
    table = load_table(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, BLOCK, WINDOW, SLOTS, TABLES, PER_HEAD, GROUP,
    )  # fmt: skip
    tile_row, tile_column = pixels_of(TILE_H, TILE_W)
    table_out = tl.zeros((2 * SLOTS, BLOCK), tl.float32)
    slot = tl.arange(0, 2 * SLOTS)[None, :]
    offset = slot % SLOTS
    of_rows, of_columns = (slot < SLOTS) & (offset < WINDOW), (slot >= SLOTS) & (offset < WINDOW)
    pixel_row, _ = pixels_of(ROWS, COLS)
    pixel_of_row = pixel_row[:, None] == tl.arange(0, MOST_ROWS)[None, :]
    for column in range(0, WIDTH, TILE_W):
        rows, columns = row + tile_row, column + tile_column
        inside = inside_image(rows, columns, HEIGHT, WIDTH)
        queries = load_pixels(
            query_ptr + query_start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        cotangents = load_pixels(
            cotangent_ptr + start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, HEADS * DIM, CHANNELS, BLOCK,
        )  # fmt: skip
        near = ()
        if CHUNKS == 1:
            near = load_halo(
                0, key_start, value_start, row, column,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK, WINDOW, CONTENT, ROWS, COLS,
            )  # fmt: skip
        query_outs = tl.zeros((TILE, BLOCK), tl.float32)
        for member in tl.static_range(GROUP):
            places = (image * HEADS + first_head + member) * (HEIGHT * WIDTH)
            places += rows * WIDTH + columns
            log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
            query = of_member(queries, member, GROUP, DIM)
            cotangent = of_member(cotangents, member, GROUP, DIM)
            relative = dot(query, tl.trans(table))
            column_logits = spread_logits(
                relative, tile_column, tl.arange(0, COLS), column - WINDOW // 2,
                WIDTH, WINDOW, MASK, SLOTS,
            )  # fmt: skip
            # With one chunk, the compiler finds that the second loop repeats the first.
            delta = tl.zeros((TILE,), tl.float32)
            total = tl.zeros((TILE,), tl.float32)
            for chunk in range(CHUNKS):
                _keys, weights, products = weigh(
                    chunk, query, cotangent, near, relative, column_logits, log_sums,
                    key_start, value_start, row, column, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                    WINDOW, MASK, CONTENT, ROWS, COLS, CHUNKS, SCALE2,
                )  # fmt: skip
                delta += tl.sum(weights * products, 1)
                total += tl.sum(weights, 1)
            # The weights' sum is 1 but for the log-sum's rounding, and 0 beyond the image.
            delta /= tl.maximum(total, 0.5)
            query_out = tl.zeros((TILE, BLOCK), tl.float32)
            by_slot = tl.zeros((TILE, 2 * SLOTS), tl.float32)  # of the logits, as `table` has them
            column_sums = tl.zeros((TILE, COLS), tl.float32)
            for chunk in range(CHUNKS):
                keys, weights, products = weigh(
                    chunk, query, cotangent, near, relative, column_logits, log_sums,
                    key_start, value_start, row, column, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                    WINDOW, MASK, CONTENT, ROWS, COLS, CHUNKS, SCALE2,
                )  # fmt: skip
                logits_out = weights * (products - delta[:, None])
                if TABLES:
                    column_sums += tl.sum(tl.reshape(logits_out, (TILE, ROWS, COLS)), 1)
                logits_out = logits_out.to(query.dtype)
                if CONTENT:
                    query_out = dot(logits_out, keys, query_out)
                if TABLES:  # sums along rows, as a product with ones
                    row_sums = dot(logits_out, pixel_of_row.to(query.dtype))
                    place = offset + tile_row[:, None] - chunk * ROWS
                    counts = of_rows & (place >= 0) & (place < ROWS)
                    by_offset = tl.gather(row_sums, tl.where(counts, place, 0), 1)
                    by_slot += tl.where(counts, by_offset, 0.0)
            if TABLES:
                place = tl.where(of_columns, offset + tile_column[:, None], 0)
                by_slot += tl.where(of_columns, tl.gather(column_sums, place, 1), 0.0)
                by_slot = by_slot.to(query.dtype)
                query_out = dot(by_slot, table, query_out)
                table_out = dot(tl.trans(by_slot), query, table_out)
            query_outs = with_member(query_out, query_outs, member, GROUP, DIM)
            tl.store(delta_ptr + places, delta, mask=inside)
        store_pixels(
            query_out_ptr + query_start, row, column, TILE_H, TILE_W, query_outs * SCALE,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
    if TABLES:
        slot = tl.arange(0, 2 * SLOTS)[:, None]
        channel = tl.arange(0, BLOCK)[None, :]
        owned = (slot < SLOTS) == (channel % DIM < DIM // 2)
        place = slot % SLOTS * CHANNELS + channel
        tl.store(
            table_out_ptr + tl.program_id(0).to(tl.int64) * (WINDOW * CHANNELS) + place,
            table_out * SCALE,
            mask=owned & (slot % SLOTS < WINDOW) & (channel < CHANNELS),
        )


@triton.jit
def local_attention_backward_keys(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr,
    log_sum_ptr, delta_ptr, cotangent_ptr, key_out_ptr, value_out_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: a tile of keys sums up what the queries around it send.

    A query outside the image is read as zeros: its cotangent and its delta make it count for 0.
    """
    CHANNELS: tl.constexpr = GROUP * DIM
    image, row, first_head = strip_of_program(HEIGHT, HEADS, GROUP)
    start = image * (HEIGHT * WIDTH * HEADS * DIM) + first_head * DIM
    query_start = image * (HEIGHT * WIDTH * PITCH) + first_head * DIM
    key_start, value_start = query_start + APART, query_start + 2 * APART
    column_tables = ()
    row_keys = ()
    for member in tl.static_range(GROUP):
        column_table = load_column_table(
            column_table_ptr, first_head + member, member,
            HEADS, DIM, BLOCK, WINDOW, TABLES, PER_HEAD,
        )  # fmt: skip
        column_tables = column_tables + (column_table,)
        if CHUNKS == 1:
            for part in tl.static_range(PARTS):
                row_key = load_row_keys(
                    row_table_ptr, first_head + member, member, part * ROWS,
                    HEADS, DIM, BLOCK, WINDOW, TABLES, PER_HEAD, ROWS,
                )  # fmt: skip
                row_keys = row_keys + (row_key,)
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    down, across = pixels_of(ROWS, COLS)
    for column in range(0, WIDTH, TILE_W):
        values = load_pixels(
            value_ptr + value_start, row, column, TILE_H, TILE_W,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        keys = values
        if CONTENT:
            keys = load_pixels(
                key_ptr + key_start, row, column, TILE_H, TILE_W,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
        key_outs = ()
        value_outs = ()
        for _member in tl.static_range(GROUP):
            key_outs = key_outs + (tl.zeros((TILE, BLOCK), tl.float32),)
            value_outs = value_outs + (tl.zeros((TILE, BLOCK), tl.float32),)
        for turn in range(CHUNKS):
            for part in tl.static_range(PARTS):
                chunk = turn * PARTS + part
                first_row, first_column = row - WINDOW // 2 + chunk * ROWS, column - WINDOW // 2
                queries = load_pixels(
                    query_ptr + query_start, first_row, first_column, ROWS, COLS,
                    HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                )  # fmt: skip
                cotangents = load_pixels(
                    cotangent_ptr + start, first_row, first_column, ROWS, COLS,
                    HEIGHT, WIDTH, HEADS * DIM, CHANNELS, BLOCK,
                )  # fmt: skip
                rows, columns = first_row + down, first_column + across
                inside = inside_image(rows, columns, HEIGHT, WIDTH)
                # A row of the halo at a time, within which a key's row embedding is the same.
                by_row = tl.permute(tl.reshape(queries, (ROWS, COLS, BLOCK)), (0, 2, 1))
                new_key_outs = ()
                new_value_outs = ()
                for member in tl.static_range(GROUP):
                    places = (image * HEADS + first_head + member) * (HEIGHT * WIDTH)
                    places += rows * WIDTH + columns
                    log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
                    if CHUNKS == 1:
                        row_key = row_keys[member * PARTS + part]
                    else:
                        row_key = load_row_keys(
                            row_table_ptr, first_head + member, member, chunk * ROWS,
                            HEADS, DIM, BLOCK, WINDOW, TABLES, PER_HEAD, ROWS,
                        )  # fmt: skip
                    logits = dot(row_key, by_row)
                    if CONTENT:
                        key = of_member(keys, member, GROUP, DIM)
                        key = tl.broadcast_to(key[None, :, :], (ROWS, TILE, BLOCK))
                        logits = dot(key, by_row, logits)
                    logits = tl.reshape(tl.permute(logits, (1, 0, 2)), (TILE, ROWS * COLS))
                    column_logits = pull_logits(
                        dot(column_tables[member], tl.trans(queries)), across, WINDOW, SCALE2
                    )
                    column_logits = (column_logits - log_sums[None, :])[None, :, :]
                    column_logits = tl.broadcast_to(column_logits, (TILE_H, TILE_W, ROWS * COLS))
                    logits = logits * SCALE2 + tl.reshape(column_logits, (TILE, ROWS * COLS))
                    offset = tile_row[:, None] - (chunk * ROWS + down)[None, :] + (WINDOW - 1)
                    logits = tl.where((offset >= 0) & (offset < WINDOW), logits, OUTSIDE)
                    weights = tl.exp2(tl.minimum(logits, 0.0))
                    value_out = dot(weights.to(cotangents.dtype), cotangents, value_outs[member])
                    key_out = key_outs[member]
                    if CONTENT:
                        deltas = tl.load(delta_ptr + places, mask=inside, other=0.0)
                        products = dot(of_member(values, member, GROUP, DIM), tl.trans(cotangents))
                        logits_out = weights * (products - deltas[None, :])
                        key_out = dot(logits_out.to(queries.dtype), queries, key_out)
                    new_key_outs = new_key_outs + (key_out,)
                    new_value_outs = new_value_outs + (value_out,)
                key_outs, value_outs = new_key_outs, new_value_outs
        key_out, value_out = key_outs[0], value_outs[0]
        for member in tl.static_range(1, GROUP):
            key_out = with_member(key_outs[member], key_out, member, GROUP, DIM)
            value_out = with_member(value_outs[member], value_out, member, GROUP, DIM)
        # A packed array's gradients are in one, too.
        value_to = key_out_ptr if APART else value_out_ptr
        store_pixels(
            value_to + value_start, row, column, TILE_H, TILE_W, value_out,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        if CONTENT:
            store_pixels(
                key_out_ptr + key_start, row, column, TILE_H, TILE_W, key_out * SCALE,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
