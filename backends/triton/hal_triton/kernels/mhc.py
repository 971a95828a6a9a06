"""`mhc.pre` and `mhc.post`: mixes of the streams, Sinkhorn-Knopp in registers, and the sums they weigh.

A token's mixes need all of its channels before any of them can be weighed, and the channels of all tokens that share a
weight do not fit a core. So one kernel multiplies, in parts of the channels, and a second one adds the parts in order,
balances, and weighs.
"""

from __future__ import annotations

import triton
import triton.language as tl

WIDTH = tl.constexpr(32)
"""Columns of a part's result: the mixes, then the sum of squares, then nothing."""


@triton.jit
def bfloat16_dot(x, weight, acc):
    """`acc + x weightᵀ` for bfloat16 x and float32 weights: three bfloat16 parts hold every bit of a weight."""
    high = weight.to(tl.bfloat16)
    rest = weight - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    acc = tl.dot(x, tl.trans(low), acc)
    acc = tl.dot(x, tl.trans(middle), acc)
    return tl.dot(x, tl.trans(high), acc)


@triton.jit
def mix_kernel(
    streams,
    fn,
    parts_out,
    tokens,
    MIXES: tl.constexpr,
    FEATURES: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Per tile of tokens and part of the features: products with `fn [MIXES, FEATURES]` and the sum of squares."""
    LENGTH: tl.constexpr = (FEATURES + PARTS * BK - 1) // (PARTS * BK) * BK
    row_tiles = tl.cdiv(tokens, BM)
    mix = tl.arange(0, WIDTH)
    for tile in range(tl.program_id(0), row_tiles * PARTS, tl.num_programs(0)):
        part = tile // row_tiles
        token = (tile % row_tiles * BM + tl.arange(0, BM)).to(tl.int64)
        inside = token < tokens
        acc = tl.zeros((BM, WIDTH), tl.float32)
        squares = tl.zeros((BM,), tl.float32)
        for step in range(0, LENGTH, BK):
            k = part * LENGTH + step + tl.arange(0, BK)
            at = streams + token[:, None] * FEATURES + k[None, :]
            x = tl.load(at, mask=inside[:, None] & (k < FEATURES)[None, :], other=0.0)
            held = (mix < MIXES)[:, None] & (k < FEATURES)[None, :]
            weight = tl.load(fn + mix[:, None] * FEATURES + k[None, :], mask=held, other=0.0)
            acc = bfloat16_dot(x, weight, acc)
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
        acc = tl.where((mix == MIXES)[None, :], squares[:, None], acc)
        at = parts_out + (part * tokens + token)[:, None] * WIDTH + mix[None, :]
        tl.store(at, acc, mask=inside[:, None] & (mix <= MIXES)[None, :])


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def group(mixes, inverse, scale, base, which: tl.constexpr, index):
    """Logits of one group of mixes: `index` says which of them, `inverse` is the norm's factor."""
    return mixes * inverse * tl.load(scale + which) + tl.load(base + index)


@triton.jit
def summed(parts_in, token, inside, tokens, index, PARTS: tl.constexpr):
    """Column(s) `index` of a token's parts, added in order."""
    total = tl.load(parts_in + token * WIDTH + index, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts_in + (part * tokens + token) * WIDTH + index, mask=inside, other=0.0)
    return total


@triton.jit
def pre_kernel(
    streams,
    parts_in,
    scale,
    base,
    y,
    post,
    comb,
    tokens,
    iterations,
    norm_eps,
    eps,
    N: tl.constexpr,
    HIDDEN: tl.constexpr,
    PARTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Tokens' mixes to weights: `y` is weighed, `post` and `comb` are stored."""
    each = tl.arange(0, N)
    cell = each[:, None] * N + each[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(tokens, R), tl.num_programs(0)):
        token = (tile * R + tl.arange(0, R)).to(tl.int64)
        inside = token < tokens
        squares = summed(parts_in, token, inside, tokens, (2 + N) * N, PARTS)
        inverse = 1.0 / tl.sqrt(squares / (N * HIDDEN) + norm_eps)
        at, there, factor = token[:, None], inside[:, None], inverse[:, None]

        expand = summed(parts_in, at, there, tokens, N + each[None, :], PARTS)
        expand = 2.0 * sigmoid(group(expand, factor, scale, base, 1, N + each[None, :]))
        tl.store(post + at * N + each[None, :], expand, mask=there)

        index = 2 * N + cell[None, :, :]
        mixed = summed(parts_in, at[:, :, None], there[:, :, None], tokens, index, PARTS)
        mixed = group(mixed, factor[:, :, None], scale, base, 2, index)
        mixed = tl.exp(mixed - tl.max(mixed, 2)[:, :, None])
        mixed = mixed / tl.sum(mixed, 2)[:, :, None] + eps
        mixed = mixed / (tl.sum(mixed, 1)[:, None, :] + eps)
        for _ in range(1, iterations):
            mixed = mixed / (tl.sum(mixed, 2)[:, :, None] + eps)
            mixed = mixed / (tl.sum(mixed, 1)[:, None, :] + eps)
        tl.store(comb + at[:, :, None] * (N * N) + cell[None, :, :], mixed, mask=there[:, :, None])

        for first in range(0, HIDDEN, C):
            column = first + tl.arange(0, C)
            held = there & (column < HIDDEN)[None, :]
            total = tl.zeros((R, C), tl.float32)
            for stream in tl.static_range(N):
                weight = summed(parts_in, token, inside, tokens, stream, PARTS)
                weight = sigmoid(group(weight, inverse, scale, base, 0, stream)) + eps
                x = tl.load(streams + (at * N + stream) * HIDDEN + column[None, :], mask=held, other=0.0)
                total += weight[:, None] * x.to(tl.float32)
            tl.store(y + at * HIDDEN + column[None, :], total.to(y.dtype.element_ty), mask=held)


@triton.jit
def post_kernel(
    y,
    streams,
    post,
    comb,
    out,
    tokens,
    N: tl.constexpr,
    HIDDEN: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """`out_k = post_k y + sum_j comb[j, k] stream_j` for tiles of tokens and channels."""
    each = tl.arange(0, N)
    row_tiles = tl.cdiv(tokens, R)
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(HIDDEN, C), tl.num_programs(0)):
        token = (tile % row_tiles * R + tl.arange(0, R)).to(tl.int64)
        column = tile // row_tiles * C + tl.arange(0, C)
        inside = token < tokens
        held = inside[:, None] & (column < HIDDEN)[None, :]
        own = tl.load(y + token[:, None] * HIDDEN + column[None, :], mask=held, other=0.0).to(tl.float32)
        at = (token[:, None, None] * N + each[None, :, None]) * HIDDEN + column[None, None, :]
        x = tl.load(streams + at, mask=held[:, None, :], other=0.0).to(tl.float32)
        for k in tl.static_range(N):
            weight = tl.load(comb + token[:, None] * (N * N) + each[None, :] * N + k, mask=inside[:, None], other=0.0)
            total = tl.load(post + token * N + k, mask=inside, other=0.0)[:, None] * own
            total += tl.sum(weight[:, :, None] * x, 1)
            at = out + (token[:, None] * N + k) * HIDDEN + column[None, :]
            tl.store(at, total.to(out.dtype.element_ty), mask=held)
