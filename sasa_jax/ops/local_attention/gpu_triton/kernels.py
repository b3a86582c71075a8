"""The kernels, in Triton: forward, the gradient of queries and tables, that of keys and values.

A program owns a column of `TILES` tiles, 2 x 8 pixels each, and a group of heads that lie side by
side: of narrow ones as many as fill the `BLOCK` channels that a product sums over at least. It
reads the rows of the tiles' halo once, `COLS` pixels each, and goes through its tiles and heads,
each of which meets `WINDOW + 1` of the rows. Heads are told apart by zeros: those of a tile's
pixels but for one head's leave the other heads' out of a product. Where that many rows do not fit
(`ROUNDS` above 1), there is one tile, and for each head it reads `ROWS` at a time. Images are
contiguous, [B, H, W, N, D] or, where query, key and value share an array, [B, H, W, 3, N, D];
log_sums (base 2) and deltas are [B, N, H, W].

What is costly is not the products but what reading costs (a pixel's heads share a line of the
cache, of which a program wants a few) and what is done to every logit (both measured:
docs/performance.md). So the relative logits are what the products' sums begin with, the scale is
applied where the exponent is formed, and a tile's pixels are always the rows of a product, whose
results can then be the left side of the next. Every sum has a fixed order, and no program writes
what another writes.

The constants are those of `constants.launch_of`.
"""

import triton
import triton.language as tl

from sasa_jax.ops.local_attention.gpu_triton.tiles import (
    LOWEST,
    OUTSIDE,
    TILE,
    TILE_H,
    TILE_W,
    slices_of,
    dot,
    inside_image,
    load_column_table,
    load_row,
    load_row_key,
    load_rows,
    load_table,
    load_tile,
    logits_of,
    of_member,
    pixels_of,
    place_of_program,
    pull_logits,

    spread_logits,
    store_tile,
    with_member,
)


@triton.jit
def local_attention_forward(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr, output_ptr, log_sum_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    COLS: tl.constexpr, ROWS: tl.constexpr, ROW_SLOTS: tl.constexpr, ROUNDS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Output, and the logarithm of each query's sum of exponentials, by an online softmax."""
    CHANNELS: tl.constexpr = GROUP * DIM
    image, top, column, first_head = place_of_program(HEIGHT, WIDTH, HEADS, TILES, GROUP)
    table = load_table(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, BLOCK, WINDOW, SLOTS, TABLES, PER_HEAD, GROUP,
    )  # fmt: skip
    start = image * (HEIGHT * WIDTH * HEADS * DIM) + first_head * DIM
    query_start = image * (HEIGHT * WIDTH * PITCH) + first_head * DIM
    key_start = key_ptr + query_start + APART
    value_start = value_ptr + query_start + 2 * APART
    halo_top, halo_column = top - WINDOW // 2, column - WINDOW // 2
    tile_row, tile_column = pixels_of(TILE_H, TILE_W)
    values = load_rows(
        value_start, halo_top, halo_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
    )
    keys = values
    if CONTENT:
        keys = load_rows(
            key_start, halo_top, halo_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
        )
    for tile in tl.static_range(TILES):
        row = top + tile * TILE_H
        queries = load_tile(
            query_ptr + query_start, row, column, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
        )
        if tile + 1 < TILES:  # of the next tile's rows, those that this one has not
            values_below = load_rows(
                value_start, halo_top + tile * TILE_H + ROWS, halo_column, TILE_H, COLS,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
            keys_below = values_below
            if CONTENT:
                keys_below = load_rows(
                    key_start, halo_top + tile * TILE_H + ROWS, halo_column, TILE_H, COLS,
                    HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                )  # fmt: skip
        outputs = tl.zeros((TILE, BLOCK), tl.float32)
        for member in range(GROUP):
            query = of_member(queries, member, GROUP, DIM)
            relative = dot(query, tl.trans(table))
            column_logits = spread_logits(
                relative, tile_column, tl.arange(0, COLS), halo_column, WIDTH, WINDOW, MASK, SLOTS
            )
            largest = tl.full((TILE,), LOWEST, tl.float32)
            total = tl.zeros((TILE,), tl.float32)
            output = tl.zeros((TILE, BLOCK), tl.float32)
            for turn in range(ROUNDS):
                first = turn * ROWS
                if ROUNDS > 1:
                    values = load_rows(
                        value_start, halo_top + first, halo_column, ROWS, COLS,
                        HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                    )  # fmt: skip
                    keys = values
                    if CONTENT:
                        keys = load_rows(
                            key_start, halo_top + first, halo_column, ROWS, COLS,
                            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                        )  # fmt: skip
                row_logits = spread_logits(
                    relative, tile_row, first + tl.arange(0, ROW_SLOTS), row - WINDOW // 2,
                    HEIGHT, WINDOW, MASK, 0,
                )  # fmt: skip
                logits = logits_of(
                    query, keys,
                    slices_of(row_logits[:, :, None] + column_logits[:, None, :], ROWS),
                    ROWS, CONTENT,
                )  # fmt: skip
                most = logits[0]
                for place in tl.static_range(1, ROWS):
                    most = tl.maximum(most, logits[place])
                before = largest
                largest = tl.maximum(before, tl.max(most, 1))
                shrink = tl.exp2((before - largest) * SCALE2)
                sums = tl.zeros((TILE, COLS), tl.float32)
                output *= shrink[:, None]
                for place in tl.static_range(ROWS):
                    weights = tl.exp2(logits[place] * SCALE2 - (largest * SCALE2)[:, None])
                    sums += weights
                    value = values[place]
                    output = dot(weights.to(value.dtype), value, output)
                total = total * shrink + tl.sum(sums, 1)
            outputs = with_member(output * (1 / total)[:, None], outputs, member, GROUP, DIM)
            rows, columns = row + tile_row, column + tile_column
            tl.store(
                log_sum_ptr
                + (image * HEADS + first_head + member) * (HEIGHT * WIDTH)
                + rows * WIDTH
                + columns,
                largest * SCALE2 + tl.log2(total),
                mask=inside_image(rows, columns, HEIGHT, WIDTH),
            )
        store_tile(
            output_ptr + start, row, column, outputs,
            HEIGHT, WIDTH, HEADS * DIM, CHANNELS, BLOCK,
        )  # fmt: skip
        if tile + 1 < TILES:
            keys = keys[TILE_H:] + keys_below
            values = values[TILE_H:] + values_below


@triton.jit
def local_attention_backward_queries(
    query_ptr, key_ptr, value_ptr, row_table_ptr, column_table_ptr,
    log_sum_ptr, cotangent_ptr, query_out_ptr, delta_ptr, table_out_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, SCALE: tl.constexpr, SCALE2: tl.constexpr, MASK: tl.constexpr,
    CONTENT: tl.constexpr, TABLES: tl.constexpr, PER_HEAD: tl.constexpr, PITCH: tl.constexpr,
    APART: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    COLS: tl.constexpr, ROWS: tl.constexpr, ROW_SLOTS: tl.constexpr, ROUNDS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, and the tables', [K, GROUP * D], by program.

    Also deltas, the sums of weight times weight's gradient, for the other backward kernel. They are
    made from the weights: the rounding of a 16-bit output would shift all logits' gradients.
    """
    CHANNELS: tl.constexpr = GROUP * DIM
    image, top, column, first_head = place_of_program(HEIGHT, WIDTH, HEADS, TILES, GROUP)
    table = load_table(
        row_table_ptr, column_table_ptr, first_head,
        HEADS, DIM, BLOCK, WINDOW, SLOTS, TABLES, PER_HEAD, GROUP,
    )  # fmt: skip
    start = image * (HEIGHT * WIDTH * HEADS * DIM) + first_head * DIM
    query_start = image * (HEIGHT * WIDTH * PITCH) + first_head * DIM
    key_start = key_ptr + query_start + APART
    value_start = value_ptr + query_start + 2 * APART
    halo_top, halo_column = top - WINDOW // 2, column - WINDOW // 2
    tile_row, tile_column = pixels_of(TILE_H, TILE_W)
    slot = tl.arange(0, ROW_SLOTS)
    offset = tl.arange(0, SLOTS)[None, :]
    values = load_rows(
        value_start, halo_top, halo_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
    )
    keys = values
    if CONTENT:
        keys = load_rows(
            key_start, halo_top, halo_column, ROWS, COLS, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
        )
    table_out = tl.zeros((2 * SLOTS, BLOCK), tl.float32)
    for tile in tl.static_range(TILES):
        row = top + tile * TILE_H
        rows, columns = row + tile_row, column + tile_column
        inside = inside_image(rows, columns, HEIGHT, WIDTH)
        queries = load_tile(
            query_ptr + query_start, row, column, HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK
        )
        if tile + 1 < TILES:  # of the next tile's rows, those that this one has not
            values_below = load_rows(
                value_start, halo_top + tile * TILE_H + ROWS, halo_column, TILE_H, COLS,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
            keys_below = values_below
            if CONTENT:
                keys_below = load_rows(
                    key_start, halo_top + tile * TILE_H + ROWS, halo_column, TILE_H, COLS,
                    HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                )  # fmt: skip
        cotangents = load_tile(
            cotangent_ptr + start, row, column, HEIGHT, WIDTH, HEADS * DIM, CHANNELS, BLOCK
        )
        query_outs = tl.zeros((TILE, BLOCK), tl.float32)
        for member in range(GROUP):
            head = first_head + member
            places = (image * HEADS + head) * (HEIGHT * WIDTH) + rows * WIDTH + columns
            log_sums = tl.load(log_sum_ptr + places, mask=inside, other=0.0)
            query = of_member(queries, member, GROUP, DIM)
            cotangent = of_member(cotangents, member, GROUP, DIM)
            relative = dot(query, tl.trans(table))
            column_logits = spread_logits(
                relative, tile_column, tl.arange(0, COLS), halo_column, WIDTH, WINDOW, MASK, SLOTS
            )
            # With one round, the compiler finds that the second loop repeats the first.
            delta = tl.zeros((TILE,), tl.float32)
            total = tl.zeros((TILE,), tl.float32)
            for turn in range(ROUNDS):
                first = turn * ROWS
                if ROUNDS > 1:
                    values = load_rows(
                        value_start, halo_top + first, halo_column, ROWS, COLS,
                        HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                    )  # fmt: skip
                    keys = values
                    if CONTENT:
                        keys = load_rows(
                            key_start, halo_top + first, halo_column, ROWS, COLS,
                            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                        )  # fmt: skip
                row_logits = spread_logits(
                    relative, tile_row, first + slot, row - WINDOW // 2, HEIGHT, WINDOW, MASK, 0
                )
                logits = logits_of(
                    query, keys,
                    slices_of(row_logits[:, :, None] + column_logits[:, None, :], ROWS),
                    ROWS, CONTENT,
                )  # fmt: skip
                deltas = tl.zeros((TILE, COLS), tl.float32)
                sums = tl.zeros((TILE, COLS), tl.float32)
                for place in tl.static_range(ROWS):
                    # At most 1 but for rounding, which would be an overflow where logits are huge.
                    weights = tl.exp2(tl.minimum(logits[place] * SCALE2 - log_sums[:, None], 0.0))
                    deltas += weights * dot(cotangent, tl.trans(values[place]))
                    sums += weights
                delta += tl.sum(deltas, 1)
                total += tl.sum(sums, 1)
            # The weights' sum is 1 but for the log-sum's rounding, and 0 beyond the image.
            delta /= tl.maximum(total, 0.5)
            query_out = tl.zeros((TILE, BLOCK), tl.float32)
            row_out = tl.zeros((TILE, SLOTS), tl.float32)  # of the logits, by offset
            column_sums = tl.zeros((TILE, COLS), tl.float32)
            for turn in range(ROUNDS):
                first = turn * ROWS
                if ROUNDS > 1:
                    values = load_rows(
                        value_start, halo_top + first, halo_column, ROWS, COLS,
                        HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                    )  # fmt: skip
                    keys = values
                    if CONTENT:
                        keys = load_rows(
                            key_start, halo_top + first, halo_column, ROWS, COLS,
                            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
                        )  # fmt: skip
                row_logits = spread_logits(
                    relative, tile_row, first + slot, row - WINDOW // 2, HEIGHT, WINDOW, MASK, 0
                )
                logits = logits_of(
                    query, keys,
                    slices_of(row_logits[:, :, None] + column_logits[:, None, :], ROWS),
                    ROWS, CONTENT,
                )  # fmt: skip
                row_sums = tl.zeros((TILE, ROW_SLOTS), tl.float32)
                for place in tl.static_range(ROWS):
                    weights = tl.exp2(tl.minimum(logits[place] * SCALE2 - log_sums[:, None], 0.0))
                    products = dot(cotangent, tl.trans(values[place]))
                    logits_out = weights * (products - delta[:, None])
                    if TABLES:
                        column_sums += logits_out
                    logits_out = logits_out.to(query.dtype)
                    if TABLES:  # sums along the row, as a product with ones
                        ones = tl.zeros((COLS, ROW_SLOTS), query.dtype) + (slot == place)[None, :]
                        row_sums = dot(logits_out, ones.to(query.dtype), row_sums)
                    if CONTENT:
                        query_out = dot(logits_out, keys[place], query_out)
                if TABLES:
                    at = offset + tile_row[:, None] - first
                    counts = (at >= 0) & (at < ROWS) & (offset < WINDOW)
                    by_offset = tl.gather(row_sums, tl.where(counts, at, 0), 1)
                    row_out += tl.where(counts, by_offset, 0.0)
            if TABLES:
                counts = offset < WINDOW
                at = tl.where(counts, offset + tile_column[:, None], 0)
                column_out = tl.where(counts, tl.gather(column_sums, at, 1), 0.0)
                by_slot = tl.permute(tl.join(row_out, column_out), (0, 2, 1))
                by_slot = tl.reshape(by_slot, (TILE, 2 * SLOTS)).to(query.dtype)
                query_out = dot(by_slot, table, query_out)
                table_out = dot(tl.trans(by_slot), query, table_out)
            query_outs = with_member(query_out, query_outs, member, GROUP, DIM)
            tl.store(delta_ptr + places, delta, mask=inside)
        store_tile(
            query_out_ptr + query_start, row, column, query_outs * SCALE,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        if tile + 1 < TILES:
            keys = keys[TILE_H:] + keys_below
            values = values[TILE_H:] + values_below
    if TABLES:
        slot = tl.arange(0, 2 * SLOTS)[:, None]
        channel = tl.arange(0, BLOCK)[None, :]
        owned = (slot < SLOTS) == (channel % DIM < DIM // 2)
        tl.store(
            table_out_ptr
            + tl.program_id(0).to(tl.int64) * (WINDOW * CHANNELS)
            + slot % SLOTS * CHANNELS
            + channel,
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
    COLS: tl.constexpr, ROWS: tl.constexpr, ROW_SLOTS: tl.constexpr, ROUNDS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: a tile of keys sums up what the queries around it send.

    A query outside the image is read as zeros: its cotangent and its delta make it count for 0.
    """
    CHANNELS: tl.constexpr = GROUP * DIM
    HALO: tl.constexpr = ROWS + (TILES - 1) * TILE_H
    image, top, column, first_head = place_of_program(HEIGHT, WIDTH, HEADS, TILES, GROUP)
    start = image * (HEIGHT * WIDTH * HEADS * DIM) + first_head * DIM
    query_start = image * (HEIGHT * WIDTH * PITCH) + first_head * DIM
    key_start, value_start = query_start + APART, query_start + 2 * APART
    halo_top, halo_column = top - WINDOW // 2, column - WINDOW // 2
    column_table = load_column_table(
        column_table_ptr, first_head,
        HEADS, DIM, BLOCK, WINDOW, SLOTS, TABLES, PER_HEAD, GROUP,
    )  # fmt: skip
    tile_row, _ = pixels_of(TILE_H, TILE_W)
    columns = halo_column + tl.arange(0, COLS)
    heads = first_head + tl.arange(0, GROUP)
    keys = ()
    values = ()
    key_outs = ()
    value_outs = ()
    for tile in tl.static_range(TILES):
        value = load_tile(
            value_ptr + value_start, top + tile * TILE_H, column,
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        key = value
        if CONTENT:
            key = load_tile(
                key_ptr + key_start, top + tile * TILE_H, column,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
        keys = keys + (key,)
        values = values + (value,)
        key_outs = key_outs + (tl.zeros((TILE, BLOCK), tl.float32),)
        value_outs = value_outs + (tl.zeros((TILE, BLOCK), tl.float32),)
    for turn in range(ROUNDS):
        first = turn * ROWS
        for place in tl.static_range(HALO):
            halo_row = halo_top + first + place
            query = load_row(
                query_ptr + query_start, halo_row, halo_column, COLS,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
            cotangent = load_row(
                cotangent_ptr + start, halo_row, halo_column, COLS,
                HEIGHT, WIDTH, HEADS * DIM, CHANNELS, BLOCK,
            )  # fmt: skip
            inside = inside_image(halo_row, columns, HEIGHT, WIDTH)
            places = (image * HEADS + heads)[:, None] * (HEIGHT * WIDTH)
            places += halo_row * WIDTH + columns[None, :]
            log_sums = tl.load(log_sum_ptr + places, mask=inside[None, :], other=0.0)
            column_logits = pull_logits(
                dot(column_table, tl.trans(query)), log_sums, WINDOW, SLOTS, GROUP, COLS, SCALE2
            )
            for member in tl.static_range(GROUP):
                delta_places = (image * HEADS + first_head + member) * (HEIGHT * WIDTH)
                delta_places += halo_row * WIDTH + columns
                deltas = tl.load(delta_ptr + delta_places, mask=inside, other=0.0)
                by_column = tl.broadcast_to(
                    column_logits[member][None, :, :], (TILE_H, TILE_W, COLS)
                )
                by_column = tl.reshape(by_column, (TILE, COLS))
                member_query = of_member(query, member, GROUP, DIM)
                member_cotangent = of_member(cotangent, member, GROUP, DIM)
                new_key_outs = ()
                new_value_outs = ()
                for tile in tl.static_range(TILES):
                    key_out = key_outs[tile]
                    value_out = value_outs[tile]
                    if (place >= tile * TILE_H) & (place < tile * TILE_H + ROWS):
                        key = of_member(keys[tile], member, GROUP, DIM)
                        value = of_member(values[tile], member, GROUP, DIM)
                        row_key = of_member(
                            load_row_key(
                                row_table_ptr, first_head, first + place - tile * TILE_H,
                                HEADS, DIM, BLOCK, WINDOW, TABLES, PER_HEAD, GROUP,
                            ), member, GROUP, DIM,
                        )  # fmt: skip
                        logits = dot(row_key, tl.trans(query))
                        if CONTENT:
                            logits = dot(key, tl.trans(query), logits)
                        logits = logits * SCALE2 + by_column
                        offset = tile_row - (first + place - tile * TILE_H) + (WINDOW - 1)
                        counts = (offset >= 0) & (offset < WINDOW)
                        logits = tl.where(counts[:, None], logits, OUTSIDE)
                        weights = tl.exp2(tl.minimum(logits, 0.0))
                        value_out = dot(weights.to(cotangent.dtype), member_cotangent, value_out)
                        if CONTENT:
                            products = dot(value, tl.trans(cotangent))
                            logits_out = weights * (products - deltas[None, :])
                            key_out = dot(logits_out.to(query.dtype), member_query, key_out)
                    new_key_outs = new_key_outs + (key_out,)
                    new_value_outs = new_value_outs + (value_out,)
                key_outs = new_key_outs
                value_outs = new_value_outs
    # A packed array's gradients are in one, too.
    value_to = key_out_ptr if APART else value_out_ptr
    for tile in tl.static_range(TILES):
        store_tile(
            value_to + value_start, top + tile * TILE_H, column, value_outs[tile],
            HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
        )  # fmt: skip
        if CONTENT:
            store_tile(
                key_out_ptr + key_start, top + tile * TILE_H, column, key_outs[tile] * SCALE,
                HEIGHT, WIDTH, PITCH, CHANNELS, BLOCK,
            )  # fmt: skip
