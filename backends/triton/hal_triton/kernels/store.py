"""`attn.store`: norm, RoPE, Hadamard, quantise and store, in one pass over the rows."""

from __future__ import annotations

import triton
import triton.language as tl

from hal_triton.kernels.angles import hadamard, rotate
from hal_triton.kernels.rows import write_rows


@triton.jit
def finish_rows(
    x,
    norm,
    position,
    frequencies,
    eps,
    PAIRS: tl.constexpr,
    DTYPE: tl.constexpr,
    NORM: tl.constexpr,
    HADAMARD: tl.constexpr,
):
    """What `attn.store` does to rows before they are quantised: float32 `x[R, D]`, rounded to DTYPE at each step."""
    D: tl.constexpr = x.shape[1]
    if NORM:
        weight = tl.load(norm + tl.arange(0, D)).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
        x = (x * inverse[:, None] * weight[None, :]).to(DTYPE).to(tl.float32)
    x = rotate(x, position, frequencies, PAIRS).to(DTYPE)
    return (hadamard(x, D) * (1.0 / D) ** 0.5).to(DTYPE).to(tl.float32) if HADAMARD else x.to(tl.float32)


@triton.jit
def store_kernel(
    values,
    norm,
    frequencies,
    positions,
    slots,
    data,
    scales,
    turning,
    page_bytes,
    rows,
    eps,
    D: tl.constexpr,
    PAIRS: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    HADAMARD: tl.constexpr,
    R: tl.constexpr,
):
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tile * R + tl.arange(0, R)).to(tl.int64)
        inside = row < rows
        physical = tl.load(slots + row, mask=inside, other=-1)
        position = tl.load(positions + row, mask=inside, other=0)
        valid = physical >= 0
        at = values + row[:, None] * D + tl.arange(0, D)[None, :]
        x = tl.load(at, mask=valid[:, None], other=0.0).to(tl.float32)
        x = finish_rows(x, norm, position, frequencies, eps, PAIRS, values.dtype.element_ty, NORM, HADAMARD)
        write_rows(x, data, scales, turning, page_bytes, physical, valid, ROPE, BLOCK, KIND)
