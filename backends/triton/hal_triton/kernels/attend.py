"""Attention of one shared K=V head over window rows and compressed rows, read from their caches in place.

One program holds a token and H of its heads and walks the rows it sees once, window first, with an online softmax. For
long rows and few tokens the rows are cut into parts; a merge that is exact in float32 puts them together, with the same
formula that an uncut program uses.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.bits import int64
from hal_triton.kernels.rows import locate, read_rows, read_turning, row_places

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sink_share(lse, sink, row, in_heads, HAS_SINK: tl.constexpr):
    """What the sink leaves of the output: `1 / (1 + exp(sink - lse))`."""
    if HAS_SINK:
        share = 1.0 / (1.0 + tl.exp(tl.load(sink + row, mask=in_heads, other=-float("inf")) - lse))
    else:
        share = lse * 0.0 + 1.0
    return share


@triton.jit
def absorb(
    x,
    x_last,
    data,
    scales,
    turning,
    valid,
    factor,
    top,
    total,
    acc,
    acc_last,
    ROPE: tl.constexpr,
    KIND: tl.constexpr,
):
    """One step of the online softmax over the rows at pointers `data[N]`, `scales[N]`, `turning[N]` where `valid`."""
    D: tl.constexpr = acc.shape[1]
    rows = read_rows(data, scales, valid, D, ROPE, KIND)
    s = tl.dot(x, tl.trans(rows))
    if KIND == "v4":
        last = read_turning(turning, valid, ROPE)
        s = tl.dot(x_last, tl.trans(last), s)
    s = tl.where(valid[None, :], s * factor, -float("inf"))
    higher = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(p, 1)
    share = p.to(tl.bfloat16)
    acc = tl.dot(share, rows, acc * fade[:, None])
    if KIND == "v4":
        acc_last = tl.dot(share, last, acc_last * fade[:, None])
    return higher, total, acc, acc_last


@triton.jit
def attend_kernel(
    q,
    window_data,
    window_scales,
    window_turning,
    window_page,
    window_table,
    window_width,
    data,
    scales,
    turning,
    page_bytes,
    table,
    table_width,
    listed,
    sink,
    positions,
    requests,
    slots,
    out,
    lse,
    tokens,
    heads,
    top_k,
    parts,
    part_rows,
    factor,
    D: tl.constexpr,
    ROPE: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_BLOCK: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SINK: tl.constexpr,
    CUT: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
):
    """`attn.attend`; ROWS: "listed", "prefix" or "none" compressed rows. `factor` is the scale in units of log 2.

    Where CUT, `out` is float32 `[tokens, parts, heads, D]` and `lse` `[tokens, parts, heads]`: each part's own softmax,
    lse -inf where the part has no rows. Part `p` takes compressed rows from `p * part_rows`, part 0 the window too.

    Rotated channels of "v4" rows are an operand of their own: they have another type, and 512 is a power of two, 448
    is not.
    """
    SPLIT: tl.constexpr = KIND == "v4"
    CODES: tl.constexpr = D - ROPE if SPLIT else D
    head_blocks = tl.cdiv(heads, H)
    n = tl.arange(0, N)
    column = tl.arange(0, D)
    last = tl.arange(0, ROPE)
    for tile in range(tl.program_id(0), tokens * head_blocks * parts, tl.num_programs(0)):
        part = tile % parts
        token = int64(tile // parts // head_blocks)
        head = (tile // parts) % head_blocks * H + tl.arange(0, H)
        in_heads = head < heads
        position = tl.load(positions + token)
        slot = tl.load(slots + tl.load(requests + token))
        at = q + (token * heads + head)[:, None] * D
        x = tl.load(at + column[None, :], mask=in_heads[:, None] & (column < CODES)[None, :], other=0.0)
        x_last = tl.load(at + CODES + last[None, :], mask=in_heads[:, None], other=0.0) if SPLIT else x
        top = tl.full((H,), -1e30, tl.float32)
        total = tl.zeros((H,), tl.float32)
        acc = tl.zeros((H, D), tl.float32)
        acc_last = tl.zeros((H, ROPE), tl.float32)
        if WINDOW > 0:
            count = tl.where(part == 0, tl.minimum(position + 1, WINDOW), 0).to(tl.int32)
            for i in range(0, count, N):
                row = (position - count + 1 + i + n).to(tl.int64)
                physical, valid = locate(window_table, window_width, slot, row, i + n < count, WINDOW_BLOCK)
                data_at, scale_at, last_at = row_places(physical, window_page, D, ROPE, WINDOW_BLOCK, KIND)
                top, total, acc, acc_last = absorb(
                    x,
                    x_last,
                    window_data + data_at,
                    window_scales + scale_at,
                    window_turning + last_at,
                    valid,
                    factor,
                    top,
                    total,
                    acc,
                    acc_last,
                    ROPE,
                    KIND,
                )
        if ROWS != "none":
            if ROWS == "listed":  # noqa: SIM108  both arms of an expression would be compiled
                count = top_k
            else:
                count = ((position + 1) // RATIO).to(tl.int32)
            for i in range(part * part_rows, tl.minimum(count, (part + 1) * part_rows), N):
                wanted = i + n < count
                if ROWS == "listed":
                    row = tl.load(listed + token * top_k + i + n, mask=wanted, other=-1).to(tl.int64)
                else:
                    row = (i + n).to(tl.int64)
                physical, valid = locate(table, table_width, slot, row, wanted, BLOCK)
                data_at, scale_at, last_at = row_places(physical, page_bytes, D, ROPE, BLOCK, KIND)
                top, total, acc, acc_last = absorb(
                    x,
                    x_last,
                    data + data_at,
                    scales + scale_at,
                    turning + last_at,
                    valid,
                    factor,
                    top,
                    total,
                    acc,
                    acc_last,
                    ROPE,
                    KIND,
                )
        empty = total == 0.0
        logs = tl.where(empty, -float("inf"), top * LN2 + tl.log(total))
        inverse = 1.0 / tl.where(empty, 1.0, total)
        if CUT:
            where = (token * parts + part) * heads + head
            tl.store(lse + where, logs, mask=in_heads)
        else:
            where = token * heads + head
            inverse *= tl.where(empty, 0.0, sink_share(logs, sink, head, in_heads, HAS_SINK))
            tl.store(lse + where, tl.where(empty, float("inf"), logs), mask=in_heads)
        at = out + where[:, None] * D
        result = (acc * inverse[:, None]).to(out.dtype.element_ty)
        tl.store(at + column[None, :], result, mask=in_heads[:, None] & (column < CODES)[None, :])
        if SPLIT:
            result = (acc_last * inverse[:, None]).to(out.dtype.element_ty)
            tl.store(at + CODES + last[None, :], result, mask=in_heads[:, None])


@triton.jit
def merge_kernel(
    part_out,
    part_lse,
    sink,
    out,
    lse,
    rows,
    heads,
    parts,
    D: tl.constexpr,
    HAS_SINK: tl.constexpr,
    R: tl.constexpr,
):
    """Parts of `rows = tokens * heads` softmaxes to one; parts without rows weigh nothing."""
    column = tl.arange(0, D)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tile * R + tl.arange(0, R)).to(tl.int64)
        inside = row < rows
        base = row // heads * parts * heads + row % heads
        top = tl.full((R,), -float("inf"), tl.float32)
        for part in range(parts):
            top = tl.maximum(top, tl.load(part_lse + base + part * heads, mask=inside, other=-float("inf")))
        empty = top == -float("inf")
        origin = tl.where(empty, 0.0, top)
        total = tl.zeros((R,), tl.float32)
        acc = tl.zeros((R, D), tl.float32)
        for part in range(parts):
            share = tl.exp(tl.load(part_lse + base + part * heads, mask=inside, other=-float("inf")) - origin)
            at = part_out + (base + part * heads)[:, None] * D + column[None, :]
            acc += share[:, None] * tl.load(at, mask=(inside & (share > 0.0))[:, None], other=0.0)
            total += share
        logs = origin + tl.log(tl.where(empty, 1.0, total))
        result = acc / tl.where(empty, 1.0, total)[:, None]
        result *= tl.where(empty, 0.0, sink_share(logs, sink, row % heads, inside, HAS_SINK))[:, None]
        tl.store(out + row[:, None] * D + column[None, :], result.to(out.dtype.element_ty), mask=inside[:, None])
        tl.store(lse + row, tl.where(empty, float("inf"), logs), mask=inside)
