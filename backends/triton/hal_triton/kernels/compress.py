"""Compressor pooling: windows of projected tokens to entries, with the unfinished tail kept per request.

A window's tokens come from this batch or, if they are older, from the request's state; `pool` takes each from where it
is. Pooling reads the state as the last step left it, so `advance_kernel` writes the new one in a launch of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.rows import locate, write_rows
from hal_triton.kernels.store import finish_rows


@triton.jit
def pool(
    kv,
    score,
    ape,
    state,
    state_stride,
    positions,
    cu_seqlens,
    slots,
    request,
    index,
    valid,
    D: tl.constexpr,
    RATIO: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """float32 `[R, D]`: entry `index[R]` of the batch's request `request[R]`, where `valid`.

    Per channel, a softmax over the window's tokens of `score + ape` weighs their values; with OVERLAP the previous
    window's tokens come first, with their first D channels. The softmax runs online over the tokens.
    """
    R: tl.constexpr = index.shape[0]
    COFF: tl.constexpr = 2 if OVERLAP else 1
    WIDTH: tl.constexpr = COFF * D
    channel = tl.arange(0, D)
    first = tl.load(cu_seqlens + request, mask=valid, other=0).to(tl.int64)
    start = tl.load(positions + first, mask=valid, other=0)
    slot = tl.load(slots + request, mask=valid, other=0)
    top = tl.full((R, D), -1e30, tl.float32)
    total = tl.zeros((R, D), tl.float32)
    acc = tl.zeros((R, D), tl.float32)
    for step in range(COFF * RATIO):
        position = index * RATIO + step - (COFF - 1) * RATIO
        half = (step // RATIO) * D
        exists = valid & (position >= 0)
        fresh = exists & (position >= start)
        kept = exists & (position < start)
        at = (first + position - start)[:, None] * WIDTH + half + channel[None, :]
        value = tl.load(kv + at, mask=fresh[:, None], other=0.0)
        weight = tl.load(score + at, mask=fresh[:, None], other=0.0)
        weight += tl.load(
            ape + (position % RATIO)[:, None] * WIDTH + half + channel[None, :], mask=fresh[:, None], other=0.0
        )
        at = slot[:, None] * state_stride + (position % (COFF * RATIO))[:, None] * (2 * WIDTH) + half + channel[None, :]
        value = tl.where(kept[:, None], tl.load(state + at, mask=kept[:, None], other=0.0), value)
        weight = tl.where(kept[:, None], tl.load(state + at + WIDTH, mask=kept[:, None], other=0.0), weight)
        weight = tl.where(exists[:, None], weight, -float("inf"))
        higher = tl.maximum(top, weight)
        fade = tl.exp(top - higher)
        share = tl.exp(weight - higher)
        total = total * fade + share
        acc = acc * fade + share * value
        top = higher
    return acc / total


@triton.jit
def pool_kernel(
    kv,
    score,
    ape,
    state,
    state_stride,
    positions,
    cu_seqlens,
    slots,
    request,
    index,
    out,
    entries,
    D: tl.constexpr,
    RATIO: tl.constexpr,
    OVERLAP: tl.constexpr,
    R: tl.constexpr,
):
    """`attn.compress_pool`: `out[entries, D]`."""
    for tile in range(tl.program_id(0), tl.cdiv(entries, R), tl.num_programs(0)):
        entry = (tile * R + tl.arange(0, R)).to(tl.int64)
        valid = entry < entries
        which = tl.load(request + entry, mask=valid, other=0)
        window = tl.load(index + entry, mask=valid, other=0)
        pooled = pool(
            kv, score, ape, state, state_stride, positions, cu_seqlens, slots, which, window, valid, D, RATIO, OVERLAP
        )
        tl.store(out + entry[:, None] * D + tl.arange(0, D)[None, :], pooled, mask=valid[:, None])


@triton.jit
def pool_store_kernel(
    kv,
    score,
    ape,
    state,
    state_stride,
    positions,
    requests,
    cu_seqlens,
    slots,
    norm,
    frequencies,
    table,
    table_width,
    data,
    scales,
    turning,
    page_bytes,
    tokens,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    ROPE: tl.constexpr,
    RATIO: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    HADAMARD: tl.constexpr,
    DTYPE: tl.constexpr,
    R: tl.constexpr,
):
    """Pool, norm, RoPE, Hadamard, quantise and store the entry that each token completes, if it completes one.

    Work is laid out over tokens, so nothing depends on how many entries there are. In a prefill a tile of R tokens at
    stride RATIO holds R entries; tiles whose tokens complete nothing do nothing.
    """
    span = R * RATIO
    for tile in range(tl.program_id(0), tl.cdiv(tokens, span) * RATIO, tl.num_programs(0)):
        token = ((tile // RATIO) * span + tile % RATIO + tl.arange(0, R) * RATIO).to(tl.int64)
        inside = token < tokens
        position = tl.load(positions + token, mask=inside, other=0)
        valid = inside & ((position + 1) % RATIO == 0)
        if tl.sum(valid.to(tl.int32), 0) > 0:
            request = tl.load(requests + token, mask=valid, other=0)
            window = position // RATIO
            x = pool(
                kv, score, ape, state, state_stride, positions, cu_seqlens, slots, request, window, valid,
                D, RATIO, OVERLAP,
            )  # fmt: skip
            x = x.to(DTYPE).to(tl.float32)
            x = finish_rows(x, norm, window * RATIO, frequencies, eps, PAIRS, DTYPE, True, HADAMARD)
            slot = tl.load(slots + request, mask=valid, other=0)
            physical, mapped = locate(table, table_width, slot, window, valid, BLOCK)
            write_rows(x, data, scales, turning, page_bytes, physical, mapped, ROPE, BLOCK, KIND)


@triton.jit
def advance_kernel(
    kv,
    score,
    ape,
    state,
    state_stride,
    positions,
    requests,
    cu_seqlens,
    slots,
    tokens,
    WIDTH: tl.constexpr,
    RATIO: tl.constexpr,
    ROWS: tl.constexpr,
    R: tl.constexpr,
):
    """Keep the tokens that later windows need: `state[slot, position % ROWS] = (kv, score + ape)`.

    Those are a request's tokens behind its last complete window, and with overlap (ROWS is twice RATIO) that window's.
    """
    channel = tl.arange(0, WIDTH)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, R), tl.num_programs(0)):
        token = (tile * R + tl.arange(0, R)).to(tl.int64)
        inside = token < tokens
        position = tl.load(positions + token, mask=inside, other=0)
        request = tl.load(requests + token, mask=inside, other=0)
        after = tl.load(cu_seqlens + request + 1, mask=inside, other=0).to(tl.int64)
        end = position + (after - token)
        kept = inside & (position >= end // RATIO * RATIO - (ROWS - RATIO))
        slot = tl.load(slots + request, mask=kept, other=0)
        at = token[:, None] * WIDTH + channel[None, :]
        value = tl.load(kv + at, mask=kept[:, None], other=0.0)
        weight = tl.load(score + at, mask=kept[:, None], other=0.0)
        weight += tl.load(ape + (position % RATIO)[:, None] * WIDTH + channel[None, :], mask=kept[:, None], other=0.0)
        at = slot[:, None] * state_stride + (position % ROWS)[:, None] * (2 * WIDTH) + channel[None, :]
        tl.store(state + at, value, mask=kept[:, None])
        tl.store(state + at + WIDTH, weight, mask=kept[:, None])
