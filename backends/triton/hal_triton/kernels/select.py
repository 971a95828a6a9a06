"""The lightning indexer: queries the way the cache stores its rows, scores, and a top-k whose ties are stable."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.angles import hadamard, rotate
from hal_triton.kernels.bits import int64, ue8m0_to_float32
from hal_triton.kernels.codes import e4m3_blocks, quantised, store_tile
from hal_triton.kernels.gemm import activation_tile, e4m3
from hal_triton.kernels.rows import locate, read_rows, row_places


@triton.jit
def query_tile(x, position, frequencies, PAIRS: tl.constexpr, HADAMARD: tl.constexpr, DTYPE: tl.constexpr):
    """Queries float32 `x[R, D]` rotated and transformed as stored rows are, rounded to DTYPE, in float32."""
    D: tl.constexpr = x.shape[1]
    turned = rotate(x, position, frequencies, PAIRS).to(DTYPE)
    if HADAMARD:
        result = (hadamard(turned.to(tl.bfloat16), D) * (1.0 / D) ** 0.5).to(DTYPE).to(tl.float32)
    else:
        result = turned.to(tl.float32)
    return result


@triton.jit
def query_kernel(
    q,
    positions,
    frequencies,
    codes,
    scales,
    rows,
    heads,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    HADAMARD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    R: tl.constexpr,
):
    """Rotate, transform and quantise `q[rows = tokens * heads, D]`."""
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tile * R + tl.arange(0, R)).to(tl.int64)
        inside = row < rows
        position = tl.load(positions + row // heads, mask=inside, other=0)
        x = tl.load(q + row[:, None] * D + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        result = query_tile(x, position, frequencies, PAIRS, HADAMARD, q.dtype.element_ty)
        store_tile(result, codes, scales, row, inside, 0, D, ACTIVATION)


@triton.jit
def score_kernel(
    q,
    q_scales,
    weights,
    positions,
    requests,
    slots,
    table,
    table_width,
    data,
    row_scales,
    page_bytes,
    scores,
    tokens,
    heads,
    width,
    scale,
    D: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    FILL: tl.constexpr,
):
    """`scores[t, j] = sum_h weights[t, h] * scale * relu(q[t, h] . k[j])` for the entries j that token t sees.

    UNIT "fp8" multiplies e4m3 codes of both sides, "bf16" their exact bfloat16 values. FILL writes -inf for entries
    that the token does not see; otherwise they are left alone.
    """
    head = tl.arange(0, H)
    blocks = tl.cdiv(width, N)
    for tile in range(tl.program_id(0), tokens * blocks, tl.num_programs(0)):
        token = int64(tile // blocks)
        entry = (tile % blocks) * N + tl.arange(0, N)
        visible = (tl.load(positions + token) + 1) // RATIO
        seen = entry < tl.minimum(visible, width)
        if (tile % blocks) * N < visible:
            slot = tl.load(slots + tl.load(requests + token))
            physical, mapped = locate(table, table_width, slot, entry.to(tl.int64), seen, BLOCK)
            row = token * heads + head
            in_heads = head < heads
            weight = tl.load(weights + row, mask=in_heads, other=0.0).to(tl.float32) * scale
            data_at, scale_at, _ = row_places(physical, page_bytes, D, 0, BLOCK, KIND)
            if UNIT == "fp8":
                column = tl.arange(0, D)
                x = e4m3(tl.load(q + row[:, None] * D + column[None, :], mask=in_heads[:, None], other=0))
                k = e4m3(tl.load(data + data_at[:, None] + column[None, :], mask=mapped[:, None], other=0))
                weight *= ue8m0_to_float32(tl.load(q_scales + row, mask=in_heads, other=127))
            else:
                x = activation_tile(q, q_scales, row, in_heads, 0, D, D, ACTIVATION, True)
                k = read_rows(data + data_at, row_scales + scale_at, mapped, D, 0, KIND)
            product = tl.maximum(tl.dot(x, tl.trans(k)), 0.0)
            total = tl.sum(product * weight[:, None], 0)
            if KIND == "fp8":
                total *= tl.load(row_scales + scale_at, mask=mapped, other=0.0)
            tl.store(scores + token * width + entry, total, mask=seen)
        if FILL:
            tl.store(scores + token * width + entry, -float("inf"), mask=(entry < width) & (entry >= visible))


@triton.jit
def ordered(x):
    """float32 to int32 with the same order; -0 equals 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def choose(score, valid, top_k):
    """Which of `score[N]` are the `top_k` best valid ones; equal scores go to the lowest place.

    The threshold is found bit by bit: 32 counts over scores that stay in registers.
    """
    key = ordered(score)
    threshold = tl.full((), -2147483648, tl.int32)
    for bit in tl.static_range(31, -1, -1):
        if bit == 31:  # noqa: SIM108  compile-time branch
            candidate = threshold ^ threshold
        else:
            candidate = threshold + (1 << bit)
        enough = tl.sum((valid & (key >= candidate)).to(tl.int32), 0) >= top_k
        threshold = tl.where(enough, candidate, threshold)
    above = valid & (key > threshold)
    equal = valid & (key == threshold)
    missing = top_k - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= missing))


@triton.jit
def keep(chosen, entry, score, rows_out, scores_out, at, top_k, LAST: tl.constexpr):
    """Store the chosen of `entry[N]` at `at`, in order, then -1; and their scores, unless this is the LAST choice."""
    rank = tl.cumsum(chosen.to(tl.int32), 0) - 1
    count = tl.sum(chosen.to(tl.int32), 0)
    place = tl.arange(0, chosen.shape[0])
    tl.store(rows_out + at + rank, entry.to(tl.int32), mask=chosen)
    tl.store(rows_out + at + place, -1, mask=(place >= count) & (place < top_k))
    if not LAST:
        tl.store(scores_out + at + rank, score, mask=chosen)


@triton.jit
def top_k_kernel(
    scores,
    rows_in,
    positions,
    scores_out,
    rows_out,
    tokens,
    width,
    segments,
    top_k,
    RATIO: tl.constexpr,
    LISTED: tl.constexpr,
    LAST: tl.constexpr,
    N: tl.constexpr,
):
    """The `top_k` best of each segment of N scores of each token, in ascending order of their place.

    Equal scores go to the lowest place, so choosing from the chosen of all segments gives what choosing from everything
    would. LISTED: the candidates' rows are in `rows_in`, -1 for none; otherwise place j is entry j, visible below
    `(position + 1) // RATIO`.
    """
    place = tl.arange(0, N)
    for tile in range(tl.program_id(0), tokens * segments, tl.num_programs(0)):
        token = int64(tile // segments)
        segment = tile % segments
        column = segment * N + place
        inside = column < width
        if LISTED:
            entry = tl.load(rows_in + token * width + column, mask=inside, other=-1)
            valid = entry >= 0
        else:
            entry = column
            valid = inside & (column < (tl.load(positions + token) + 1) // RATIO)
        score = tl.load(scores + token * width + column, mask=valid, other=0.0)
        at = (token * segments + segment) * top_k
        keep(choose(score, valid, top_k), entry, score, rows_out, scores_out, at, top_k, LAST)


@triton.jit
def select_kernel(
    q,
    weights,
    frequencies,
    positions,
    requests,
    slots,
    table,
    table_width,
    data,
    row_scales,
    page_bytes,
    scores_out,
    rows_out,
    tokens,
    heads,
    segments,
    top_k,
    scale,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    HADAMARD: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr,
    H: tl.constexpr,
    LAST: tl.constexpr,
    TILES: tl.constexpr,
    N: tl.constexpr,
):
    """The `top_k` best of each segment of TILES * N entries of each token: neither queries nor scores reach memory."""
    head = tl.arange(0, H)
    column = tl.arange(0, D)
    in_heads = head < heads
    for job in range(tl.program_id(0), tokens * segments, tl.num_programs(0)):
        token = int64(job // segments)
        segment = job % segments
        position = tl.load(positions + token)
        visible = ((position + 1) // RATIO).to(tl.int32)
        slot = tl.load(slots + tl.load(requests + token))
        row = token * heads + head
        x = tl.load(q + row[:, None] * D + column[None, :], mask=in_heads[:, None], other=0.0).to(tl.float32)
        x = query_tile(x, position + tl.zeros((1,), tl.int64), frequencies, PAIRS, HADAMARD, q.dtype.element_ty)
        weight = tl.load(weights + row, mask=in_heads, other=0.0).to(tl.float32) * scale
        if UNIT == "fp8":
            codes, factor = e4m3_blocks(x, D)
            x = e4m3(codes)
            weight *= tl.reshape(ue8m0_to_float32(factor), H)
        else:
            x = quantised(x, ACTIVATION)
        scores = tl.zeros((TILES, N), tl.float32)
        first = segment * TILES * N
        for i in range(0, tl.minimum(TILES, tl.cdiv(tl.maximum(visible - first, 0), N))):
            entry = first + i * N + tl.arange(0, N)
            physical, mapped = locate(table, table_width, slot, entry.to(tl.int64), entry < visible, BLOCK)
            data_at, scale_at, _ = row_places(physical, page_bytes, D, 0, BLOCK, KIND)
            if UNIT == "fp8":
                k = e4m3(tl.load(data + data_at[:, None] + column[None, :], mask=mapped[:, None], other=0))
            else:
                k = read_rows(data + data_at, row_scales + scale_at, mapped, D, 0, KIND)
            product = tl.maximum(tl.dot(x, tl.trans(k)), 0.0)
            total = tl.sum(product * weight[:, None], 0)
            if KIND == "fp8":
                total *= tl.load(row_scales + scale_at, mask=mapped, other=0.0)
            scores = tl.where((tl.arange(0, TILES) == i)[:, None], total[None, :], scores)
        score = tl.reshape(scores, TILES * N)
        entry = first + tl.arange(0, TILES * N)
        at = (token * segments + segment) * top_k
        keep(choose(score, entry < visible, top_k), entry, score, rows_out, scores_out, at, top_k, LAST)
