"""Routing, dispatch, the experts' first product, and combine."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.codes import store_tile
from hal_triton.kernels.gemm import product, tile_rows


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow and with full relative precision for very negative x."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    near = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + near


@triton.jit
def route_kernel(
    logits,
    bias,
    token_ids,
    table,
    weights,
    expert_ids,
    tokens,
    experts,
    scale,
    TOP_K: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HASH: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
):
    """`moe.route`: one row of registers per token holds all experts; the best is taken TOP_K times."""
    expert = tl.arange(0, E)
    slot = tl.arange(0, K)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, R), tl.num_programs(0)):
        row = (tile * R + tl.arange(0, R)).to(tl.int64)
        inside = row < tokens
        known = inside[:, None] & (expert < experts)[None, :]
        x = tl.load(logits + row[:, None] * experts + expert[None, :], mask=known, other=-float("inf")).to(tl.float32)
        if SCORING == "sqrtsoftplus":
            score = tl.sqrt(softplus(tl.where(known, x, 0.0)))
        elif SCORING == "sigmoid":
            score = 1.0 / (1.0 + tl.exp(-tl.where(known, x, 0.0)))
        else:
            shifted = tl.exp(x - tl.maximum(tl.max(x, 1), -1e30)[:, None])
            score = shifted / tl.maximum(tl.sum(shifted, 1), 1e-30)[:, None]
        if HASH:
            token_id = tl.load(token_ids + row, mask=inside, other=0)
            at = table + token_id[:, None] * TOP_K + slot[None, :]
            ids = tl.load(at, mask=inside[:, None] & (slot < TOP_K)[None, :], other=0).to(tl.int32)
        else:
            ids = tl.zeros((R, K), tl.int32)
            choice = score
            if HAS_BIAS:
                choice += tl.load(bias + expert, mask=expert < experts, other=0.0)[None, :]
            choice = tl.where(known, choice, -float("inf"))
            for k in tl.static_range(TOP_K):
                equal = choice == tl.max(choice, 1)[:, None]
                best = tl.min(tl.where(equal, expert[None, :], E - 1), 1)
                ids = tl.where((slot == k)[None, :], best[:, None], ids)
                choice = tl.where(expert[None, :] == best[:, None], -float("inf"), choice)
        chosen = tl.zeros((R, K), tl.float32)
        for k in tl.static_range(TOP_K):
            which = tl.sum(tl.where((slot == k)[None, :], ids, 0), 1)
            value = tl.sum(tl.where(expert[None, :] == which[:, None], score, 0.0), 1)
            chosen = tl.where((slot == k)[None, :], value[:, None], chosen)
        weight = chosen / (tl.sum(chosen, 1) + 1e-20)[:, None] * scale
        where = row[:, None] * TOP_K + slot[None, :]
        stored = inside[:, None] & (slot < TOP_K)[None, :]
        tl.store(weights + where, weight, mask=stored)
        tl.store(expert_ids + where, ids, mask=stored)


@triton.jit
def count_kernel(expert_ids, block_counts, pairs, experts, E: tl.constexpr, B: tl.constexpr):
    """`block_counts[block, e]`: how often each block of B slots names expert e."""
    expert = tl.arange(0, E)
    for block in range(tl.program_id(0), tl.cdiv(pairs, B), tl.num_programs(0)):
        pair = block * B + tl.arange(0, B)
        which = tl.load(expert_ids + pair, mask=pair < pairs, other=-1)
        counts = tl.sum((which[:, None] == expert[None, :]).to(tl.int32), 0)
        tl.store(block_counts + block * experts + expert, counts, mask=expert < experts)


@triton.jit
def offsets_kernel(block_counts, counts, blocks, experts, E: tl.constexpr):
    """Turn block counts into first rows, in place, and add up each expert's rows. One program."""
    expert = tl.arange(0, E)
    in_experts = expert < experts
    total = tl.zeros((E,), tl.int32)
    for block in range(blocks):
        total += tl.load(block_counts + block * experts + expert, mask=in_experts, other=0)
    tl.store(counts + expert, total.to(tl.int64), mask=in_experts)
    running = tl.cumsum(total, 0) - total
    for block in range(blocks):
        at = block_counts + block * experts + expert
        here = tl.load(at, mask=in_experts, other=0)
        tl.store(at, running, mask=in_experts)
        running += here


@triton.jit
def tiles_kernel(
    counts,
    starts,
    first_row,
    last_row,
    tile_expert,
    experts,
    row_tiles,
    E: tl.constexpr,
    BM: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    B: tl.constexpr,
):
    """Row tiles of BM rows that never straddle two experts; tiles that are not needed are empty."""
    expert = tl.arange(0, E)
    total = tl.load(counts + expert, mask=expert < experts, other=0).to(tl.int32)
    if HAS_STARTS:
        start = tl.load(starts + expert, mask=expert < experts, other=0).to(tl.int32)
    else:
        start = tl.cumsum(total, 0) - total
    needed = (total + BM - 1) // BM
    after = tl.cumsum(needed, 0)
    before = after - needed
    for block in range(tl.program_id(0), tl.cdiv(row_tiles, B), tl.num_programs(0)):
        m = block * B + tl.arange(0, B)
        mine = (m[:, None] >= before[None, :]) & (m[:, None] < after[None, :])
        which = tl.sum(tl.where(mine, expert[None, :], 0), 1)
        row = tl.sum(tl.where(mine, start[None, :] + (m[:, None] - before[None, :]) * BM, 0), 1)
        end = tl.sum(tl.where(mine, (start + total)[None, :], 0), 1)
        tl.store(tile_expert + m, which, mask=m < row_tiles)
        tl.store(first_row + m, row, mask=m < row_tiles)
        tl.store(last_row + m, tl.minimum(end, row + BM), mask=m < row_tiles)


@triton.jit
def place_kernel(expert_ids, block_first, weights, index, row_weights, pairs, experts, B: tl.constexpr):
    """Row of each slot: its expert's first row in this block plus its rank among the block's slots of that expert."""
    i = tl.arange(0, B)
    for block in range(tl.program_id(0), tl.cdiv(pairs, B), tl.num_programs(0)):
        pair = block * B + i
        inside = pair < pairs
        which = tl.load(expert_ids + pair, mask=inside, other=-1)
        again = tl.load(expert_ids + pair, mask=inside, other=-1)
        earlier = (which[:, None] == again[None, :]) & (i[None, :] < i[:, None])
        used = which >= 0
        row = tl.load(block_first + block * experts + which, mask=used, other=0) + tl.sum(earlier.to(tl.int32), 1)
        tl.store(index + pair, tl.where(used, row, -1).to(tl.int64), mask=inside)
        tl.store(row_weights + row, tl.load(weights + pair, mask=used, other=0.0), mask=used)


@triton.jit
def scatter_kernel(
    x,
    index,
    codes,
    scales,
    tokens,
    width,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Quantise each token's columns once and store them at the rows of all its slots."""
    row_tiles = tl.cdiv(tokens, R)
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(width, C), tl.num_programs(0)):
        token = ((tile % row_tiles) * R + tl.arange(0, R)).to(tl.int64)
        first = (tile // row_tiles) * C
        column = first + tl.arange(0, C)
        inside = (token < tokens)[:, None] & (column < width)[None, :]
        values = tl.load(x + token[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
        for k in tl.static_range(TOP_K):
            row = tl.load(index + token * TOP_K + k, mask=token < tokens, other=-1)
            store_tile(values, codes, scales, row, row >= 0, first, width, ACTIVATION)


@triton.jit
def gate_up_kernel(
    a,
    a_scales,
    w,
    w_scales,
    row_weights,
    codes,
    scales,
    first_row,
    last_row,
    expert,
    row_tiles,
    inner,
    K,
    w_stride,
    w_scale_stride,
    clamp,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    A: tl.constexpr,
    W: tl.constexpr,
    UNIT: tl.constexpr,
    EVEN: tl.constexpr,
    DTYPE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Both halves of the first product of each tile's expert, clamped SwiGLU, routing weight, quantised.

    Rows of w13 are taken in turn from its gate and its up half, so that both values of a channel meet in one thread.
    """
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(inner, BN), tl.num_programs(0)):
        row, in_rows, which = tile_rows(tile % row_tiles, 0, first_row, last_row, expert, BM, True)
        first = (tile // row_tiles) * BN
        pair = tl.arange(0, 2 * BN)
        channel = first + pair // 2
        column = (channel + (pair % 2) * inner).to(tl.int64)
        acc = product(
            a,
            a_scales,
            row,
            in_rows,
            w + which * w_stride,
            w_scales + which * w_scale_stride,
            column,
            channel < inner,
            K,
            BK,
            A,
            W,
            UNIT,
            EVEN,
        )
        gate, up = tl.split(tl.reshape(acc, BM, BN, 2))
        gate = tl.minimum(gate, clamp)
        up = tl.clamp(up, -clamp, clamp)
        weight = tl.load(row_weights + row, mask=in_rows, other=0.0)
        value = gate / (1.0 + tl.exp(-gate)) * up * weight[:, None]
        store_tile(value.to(DTYPE).to(tl.float32), codes, scales, row, in_rows, first, inner, ACTIVATION)


@triton.jit
def combine_kernel(
    rows,
    index,
    residual,
    out,
    tokens,
    width,
    TOP_K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """`moe.combine`: each token's slots summed in float32 in slot order, then the residual, rounded once."""
    row_tiles = tl.cdiv(tokens, R)
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(width, C), tl.num_programs(0)):
        token = ((tile % row_tiles) * R + tl.arange(0, R)).to(tl.int64)
        column = (tile // row_tiles) * C + tl.arange(0, C)
        inside = (token < tokens)[:, None] & (column < width)[None, :]
        total = tl.zeros((R, C), tl.float32)
        for k in tl.static_range(TOP_K):
            row = tl.load(index + token * TOP_K + k, mask=token < tokens, other=-1)
            used = (row >= 0)[:, None] & (column < width)[None, :]
            total += tl.load(rows + row[:, None] * width + column[None, :], mask=used, other=0.0).to(tl.float32)
        at = token[:, None] * width + column[None, :]
        if HAS_RESIDUAL:
            total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
