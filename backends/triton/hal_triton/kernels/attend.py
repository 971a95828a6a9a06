"""Attention of one shared K=V head over window rows and compressed rows, read from their caches in place.

One program holds a token and HEADS of its heads and walks the rows it sees once, with an online softmax. For long rows
and few tokens the compressed rows are cut into parts; a merge that is exact in float32 puts them together, with the
same formula that an uncut program uses, so a token whose rows fit one part gets the same bits either way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.rows import locate, read_rows, read_turning

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def absorb(
    q,
    q_turning,
    bytes_,
    halves,
    words,
    page_bytes,
    physical,
    valid,
    factor,
    top,
    total,
    acc,
    acc_turning,
    D: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
):
    """One step of the online softmax over rows `physical[N]`, of which `valid[N]` exist; scores in units of log 2.

    Rotated channels of "v4" rows are an operand of their own: they have another type, and 512 is a power of two, 448 not.
    """
    rows = read_rows(bytes_, halves, words, page_bytes, physical, valid, D, ROPE, BLOCK, KIND)
    s = tl.dot(q, tl.trans(rows))
    if KIND == "v4":
        turning = read_turning(halves, page_bytes, physical, valid, D, ROPE, BLOCK)
        s = tl.dot(q_turning, tl.trans(turning), s)
    s = tl.where(valid[None, :], s * factor, -float("inf"))
    higher = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(p, 1)
    share = p.to(rows.dtype)
    acc = tl.dot(share, rows, acc * fade[:, None])
    if KIND == "v4":
        acc_turning = tl.dot(share, turning, acc_turning * fade[:, None])
    return higher, total, acc, acc_turning


@triton.jit
def sink_share(lse, sink, row, in_heads, HAS_SINK: tl.constexpr):
    """What the sink leaves of the output: `1 / (1 + exp(sink - lse))`."""
    if HAS_SINK:
        share = 1.0 / (1.0 + tl.exp(tl.load(sink + row, mask=in_heads, other=-float("inf")) - lse))
    else:
        share = tl.full(lse.shape, 1.0, tl.float32)
    return share


@triton.jit
def attend_kernel(
    q,
    window_bytes,
    window_halves,
    window_words,
    window_page,
    window_table,
    window_width,
    bytes_,
    halves,
    words,
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
    """`attn.attend`; ROWS: "listed", "prefix" or "none" compressed rows.

    Where CUT, `out` is float32 `[tokens, parts, heads, D]` and `lse` `[tokens, parts, heads]`: each part's own softmax,
    lse -inf where the part has no rows. The window belongs to part 0.
    """
    head_blocks = tl.cdiv(heads, H)
    n = tl.arange(0, N)
    column = tl.arange(0, D)
    SPLIT: tl.constexpr = KIND == "v4"
    CODES: tl.constexpr = D - ROPE if SPLIT else D
    turning = tl.arange(0, ROPE)
    for tile in range(tl.program_id(0), tokens * head_blocks * parts, tl.num_programs(0)):
        part = tile % parts
        token = (tile // parts // head_blocks).to(tl.int64)
        head = (tile // parts) % head_blocks * H + tl.arange(0, H)
        in_heads = head < heads
        position = tl.load(positions + token)
        slot = tl.load(slots + tl.load(requests + token))
        at = (token * heads + head)[:, None] * D + column[None, :]
        x = tl.load(q + at, mask=in_heads[:, None] & (column < CODES)[None, :], other=0.0)
        at_turning = (token * heads + head)[:, None] * D + CODES + turning[None, :]
        x_turning = tl.load(q + at_turning, mask=in_heads[:, None], other=0.0)
        top = tl.full((H,), -1e30, tl.float32)
        total = tl.zeros((H,), tl.float32)
        acc = tl.zeros((H, D), tl.float32)
        acc_turning = tl.zeros((H, ROPE), tl.float32)
        if WINDOW > 0:
            count = tl.where(part == 0, tl.minimum(position + 1, WINDOW), 0).to(tl.int32)
            for i in range(0, count, N):
                row = position - count + 1 + i + n
                physical, valid = locate(window_table, window_width, slot, row, i + n < count, WINDOW_BLOCK)
                top, total, acc, acc_turning = absorb(
                    x,
                    x_turning,
                    window_bytes,
                    window_halves,
                    window_words,
                    window_page,
                    physical,
                    valid,
                    factor,
                    top,
                    total,
                    acc,
                    acc_turning,
                    D,
                    ROPE,
                    WINDOW_BLOCK,
                    KIND,
                )
        if ROWS != "none":
            if ROWS == "listed":
                count = top_k
            else:
                count = tl.minimum((position + 1) // RATIO, table_width * BLOCK).to(tl.int32)
            for i in range(part * part_rows, tl.minimum(count, (part + 1) * part_rows), N):
                wanted = i + n < count
                if ROWS == "listed":
                    row = tl.load(listed + token * top_k + i + n, mask=wanted, other=-1).to(tl.int64)
                else:
                    row = (i + n).to(tl.int64)
                physical, valid = locate(table, table_width, slot, row, wanted, BLOCK)
                top, total, acc, acc_turning = absorb(
                    x,
                    x_turning,
                    bytes_,
                    halves,
                    words,
                    page_bytes,
                    physical,
                    valid,
                    factor,
                    top,
                    total,
                    acc,
                    acc_turning,
                    D,
                    ROPE,
                    BLOCK,
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
        result = (acc * inverse[:, None]).to(out.dtype.element_ty)
        at = out + where[:, None] * D
        tl.store(at + column[None, :], result, mask=in_heads[:, None] & (column < CODES)[None, :])
        if SPLIT:
            result = (acc_turning * inverse[:, None]).to(out.dtype.element_ty)
            tl.store(at + CODES + turning[None, :], result, mask=in_heads[:, None])


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
