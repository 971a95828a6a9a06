"""Compression of many tokens at a time: both projections, pooled before they reach memory.

Tiles of tokens start where a window starts, so that a window's softmax stays in registers. With overlap a window's
predecessor gives its first half of channels: those are projected from rows RATIO earlier, and no row waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.gemm import load_columns
from hal_triton.kernels.rows import locate, write_rows
from hal_triton.kernels.store import finish_rows


@triton.jit
def span(positions, cu_seqlens, request, valid):
    """First token, first position and end of requests (int64), 0 where not `valid`."""
    first = tl.load(cu_seqlens + request, mask=valid, other=0).to(tl.int64)
    after = tl.load(cu_seqlens + request + 1, mask=valid, other=0).to(tl.int64)
    start = tl.load(positions + first, mask=valid, other=0)
    return first, start, start + after - first


@triton.jit
def settle(
    value,
    weight,
    ape,
    state,
    kv,
    score,
    position,
    token,
    fresh,
    kept,
    last,
    channel,
    WIDTH: tl.constexpr,
    RATIO: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Projected rows `[BM, BN]` of a tile as the softmax takes them: older ones from the state, scores with `ape`.

    Rows from position `last` on, which later windows need, go to `kv` and `score` too.
    """
    at = token[:, None] * WIDTH + channel[None, :]
    stays = (fresh & (position >= last))[:, None]
    tl.store(kv + at, value, mask=stays)
    tl.store(score + at, weight, mask=stays)
    weight += tl.load(ape + (position % RATIO)[:, None] * WIDTH + channel[None, :], mask=fresh[:, None], other=0.0)
    at = state + (position % ROWS)[:, None] * (2 * WIDTH) + channel[None, :]
    value = tl.where(kept[:, None], tl.load(at, mask=kept[:, None], other=0.0), value)
    weight = tl.where(kept[:, None], tl.load(at + WIDTH, mask=kept[:, None], other=0.0), weight)
    return value, tl.where((fresh | kept)[:, None], weight, -float("inf"))


@triton.jit
def project_pool_kernel(
    x,
    wkv,
    wgate,
    ape,
    state,
    state_stride,
    positions,
    cu_seqlens,
    slots,
    tile_request,
    tile_first,
    pooled,
    kv,
    score,
    count,
    K,
    D: tl.constexpr,
    RATIO: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """`pooled[tile, BM / RATIO, D]`: the entries that each tile completes, rounded once; others are left alone."""
    COFF: tl.constexpr = 2 if OVERLAP else 1
    WIDTH: tl.constexpr = COFF * D
    WINDOWS: tl.constexpr = BM // RATIO
    for job in range(tl.program_id(0), count * (D // BN), tl.num_programs(0)):
        tile = job % count
        channel = (job // count) * BN + tl.arange(0, BN)
        own = (channel + (COFF - 1) * D).to(tl.int64)
        every = channel >= 0
        request = tl.load(tile_request + tile)
        live = request >= 0
        first, start, end = span(positions, cu_seqlens, request, live)
        base = tl.load(tile_first + tile)
        position = base + tl.arange(0, BM)
        token = first + position - start
        fresh = live & (position >= start) & (position < end)
        before = position - RATIO
        token_before = token - RATIO
        fresh_before = live & (before >= start) & (before < end)
        value = tl.zeros((BM, BN), tl.float32)
        weight = tl.zeros((BM, BN), tl.float32)
        value_before = tl.zeros((BM, BN), tl.float32)
        weight_before = tl.zeros((BM, BN), tl.float32)
        for k in range(0, tl.where(live, K, 0), BK):
            rows = load_columns(x, token, fresh, k, K, BK, EVEN, 0.0)
            value = tl.dot(rows, tl.trans(load_columns(wkv, own, every, k, K, BK, EVEN, 0.0)), value)
            weight = tl.dot(rows, tl.trans(load_columns(wgate, own, every, k, K, BK, EVEN, 0.0)), weight)
            if OVERLAP:
                rows = load_columns(x, token_before, fresh_before, k, K, BK, EVEN, 0.0)
                half = channel.to(tl.int64)
                w = load_columns(wkv, half, every, k, K, BK, EVEN, 0.0)
                value_before = tl.dot(rows, tl.trans(w), value_before)
                w = load_columns(wgate, half, every, k, K, BK, EVEN, 0.0)
                weight_before = tl.dot(rows, tl.trans(w), weight_before)
        complete_end = (position // RATIO + 1) * RATIO
        complete = live & (complete_end <= end) & (complete_end > start)
        last = end // RATIO * RATIO - (COFF - 1) * RATIO
        held = state + tl.load(slots + request, mask=live, other=0) * state_stride
        value, weight = settle(
            value, weight, ape, held, kv, score, position, token, fresh, complete & (position < start), last, own,
            WIDTH, RATIO, COFF * RATIO,
        )  # fmt: skip
        weight = tl.reshape(weight, WINDOWS, RATIO, BN)
        top = tl.maximum(tl.max(weight, 1), -1e30)
        if OVERLAP:
            older = complete & (before >= 0) & (before < start)
            value_before, weight_before = settle(
                value_before, weight_before, ape, held, kv, score, before, token_before, fresh_before, older, last,
                channel, WIDTH, RATIO, COFF * RATIO,
            )  # fmt: skip
            weight_before = tl.reshape(weight_before, WINDOWS, RATIO, BN)
            top = tl.maximum(top, tl.max(weight_before, 1))
        share = tl.exp(weight - top[:, None, :])
        total = tl.sum(share, 1)
        acc = tl.sum(share * tl.reshape(value, WINDOWS, RATIO, BN), 1)
        if OVERLAP:
            share = tl.exp(weight_before - top[:, None, :])
            total += tl.sum(share, 1)
            acc += tl.sum(share * tl.reshape(value_before, WINDOWS, RATIO, BN), 1)
        window = tl.arange(0, WINDOWS)
        complete_end = base + (window + 1) * RATIO
        complete = live & (complete_end <= end) & (complete_end > start)
        at = pooled + (tile * WINDOWS + window).to(tl.int64)[:, None] * D + channel[None, :]
        tl.store(at, (acc / total).to(pooled.dtype.element_ty), mask=complete[:, None])


@triton.jit
def store_entries_kernel(
    pooled,
    positions,
    cu_seqlens,
    slots,
    tile_request,
    tile_first,
    norm,
    frequencies,
    table,
    table_width,
    data,
    scales,
    turning,
    page_bytes,
    count,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    ROPE: tl.constexpr,
    RATIO: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    HADAMARD: tl.constexpr,
    R: tl.constexpr,
):
    """Norm, RoPE, Hadamard, quantise and store the entries of `project_pool_kernel`."""
    for block in range(tl.program_id(0), tl.cdiv(count * WINDOWS, R), tl.num_programs(0)):
        entry = (block * R + tl.arange(0, R)).to(tl.int64)
        inside = entry < count * WINDOWS
        request = tl.load(tile_request + entry // WINDOWS, mask=inside, other=-1)
        live = request >= 0
        _, start, end = span(positions, cu_seqlens, request, live)
        position = tl.load(tile_first + entry // WINDOWS, mask=live, other=0) + entry % WINDOWS * RATIO
        valid = live & (position + RATIO <= end) & (position + RATIO > start)
        if tl.sum(valid.to(tl.int32), 0) > 0:
            at = pooled + entry[:, None] * D + tl.arange(0, D)[None, :]
            x = tl.load(at, mask=valid[:, None], other=0.0).to(tl.float32)
            x = finish_rows(x, norm, position, frequencies, eps, PAIRS, pooled.dtype.element_ty, True, HADAMARD)
            slot = tl.load(slots + request, mask=valid, other=0)
            physical, mapped = locate(table, table_width, slot, position // RATIO, valid, BLOCK)
            write_rows(x, data, scales, turning, page_bytes, physical, mapped, ROPE, BLOCK, KIND)
