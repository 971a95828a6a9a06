"""Rows of paged caches, read and written in place.

Kernels get a cache's pages up to three times, as elements of different types, so that no pointer is cast. Layouts, with
`B` rows of `D` channels per page (`hal.layouts` defines them):

- "v4": per row `D - ROPE` e4m3 codes and ROPE bfloat16 channels; behind the page's rows, per row one ue8m0 scale for
  each 64 codes, padded to a multiple of 8 bytes (the 584-byte record of FlashMLA's MODEL1 format);
- "fp8": per row D e4m3 codes; behind the rows one float32 scale each (132 bytes for 128 channels);
- "mxfp4": per row D / 2 bytes of e2m1 codes, low nibble first; behind the rows D / 32 ue8m0 scales each (68 bytes);
- "bf16", "f32": plain rows; "bf16_e4m3": bfloat16 rows whose first `D - ROPE` channels went through e4m3 in blocks of
  64; "bf16_e2m1": bfloat16 rows that went through e2m1 in blocks of 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from hal_triton.kernels.bits import (
    e2m1_to_bfloat16,
    e4m3_of_word,
    e4m3_to_float32,
    ue8m0_to_bfloat16,
    ue8m0_to_float32,
)
from hal_triton.kernels.codes import e2m1_blocks, e4m3_blocks, quantised

KINDS = {
    "v4_584": "v4",
    "index_fp8_132": "fp8",
    "index_mxfp4_68": "mxfp4",
    "rows_bf16": "bf16",
    "rows_f32": "f32",
    "rows_bf16_fp8": "bf16_e4m3",
    "index_bf16_mxfp4": "bf16_e2m1",
}
"""Layouts of `hal.layouts` that these kernels read and write, and how."""

VIEWS: dict[str, tuple[torch.dtype, ...]] = {
    "v4": (torch.int32, torch.uint8, torch.bfloat16),
    "fp8": (torch.uint8, torch.float32),
    "mxfp4": (torch.uint8, torch.uint8),
}
"""Element types of the data, the scales and the rotated channels of a page."""


@dataclass(frozen=True)
class Pages:
    """A cache as kernels take it: its pages as data, scales and rotated channels, and its geometry."""

    data: torch.Tensor
    scales: torch.Tensor
    turning: torch.Tensor
    page_bytes: int
    block: int
    kind: str

    @classmethod
    def of(cls, cache: Any) -> Pages:
        """View the pages of a `hal.cache.KVCache`; pages may lie further apart than they are long."""
        pages, kind = cache.pages, KINDS[cache.layout.name]
        views = [pages.view(dtype) for dtype in VIEWS.get(kind, (pages.dtype,))]
        views += [views[0]] * (3 - len(views))
        apart = (pages.stride(0) if len(pages) else 0) * pages.element_size()
        return cls(*views, apart, cache.layout.block_size, kind)


@triton.jit
def row_places(physical, page_bytes, D: tl.constexpr, ROPE: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """Where rows `physical[N]` (int64) have their data, scales and rotated channels, in elements of each view."""
    start = (physical // BLOCK) * page_bytes
    offset = physical % BLOCK
    if KIND == "v4":
        CODES: tl.constexpr = D - ROPE
        ROW: tl.constexpr = CODES + 2 * ROPE
        SCALES: tl.constexpr = (CODES // 64 + 7) // 8 * 8
        here = start + offset * ROW
        data = here // 4
        scales = start + BLOCK * ROW + offset * SCALES
        turning = (here + CODES) // 2
    elif KIND == "fp8":
        data = start + offset * D
        scales = start // 4 + BLOCK * (D // 4) + offset
        turning = data
    elif KIND == "mxfp4":
        data = start + offset * (D // 2)
        scales = start + BLOCK * (D // 2) + offset * (D // 32)
        turning = data
    else:
        data = start // (4 if KIND == "f32" else 2) + offset * D
        scales = data
        turning = data
    return data, scales, turning


@triton.jit
def read_rows(data, scales, valid, D: tl.constexpr, ROPE: tl.constexpr, KIND: tl.constexpr):
    """bfloat16 `[N, D]`: the rows at pointers `data[N]` and `scales[N]` where `valid`, else zeros.

    "v4" rows come without their last ROPE channels, zeros instead (`read_turning`); "fp8" rows without their scale.
    """
    N: tl.constexpr = data.shape[0]
    if KIND == "v4":
        CODES: tl.constexpr = D - ROPE
        word = tl.arange(0, D // 4)
        four = tl.load(data[:, None] + word[None, :], mask=valid[:, None] & (word < CODES // 4)[None, :], other=0)
        group = tl.arange(0, D // 64)
        code = tl.load(
            scales[:, None] + group[None, :], mask=valid[:, None] & (group < CODES // 64)[None, :], other=127
        )
        scale = ue8m0_to_float32(code)[:, :, None]
        four = tl.reshape(four, N, D // 64, 16)
        a = (e4m3_of_word(four << 24) * scale).to(tl.bfloat16)
        b = (e4m3_of_word(four << 16) * scale).to(tl.bfloat16)
        c = (e4m3_of_word(four << 8) * scale).to(tl.bfloat16)
        d = (e4m3_of_word(four) * scale).to(tl.bfloat16)
        rows = tl.reshape(tl.interleave(tl.interleave(a, c), tl.interleave(b, d)), N, D)
    elif KIND == "fp8":
        codes = tl.load(data[:, None] + tl.arange(0, D)[None, :], mask=valid[:, None], other=0)
        rows = e4m3_to_float32(codes).to(tl.bfloat16)
    elif KIND == "mxfp4":
        codes = tl.load(data[:, None] + tl.arange(0, D // 2)[None, :], mask=valid[:, None], other=0)
        code = tl.load(scales[:, None] + tl.arange(0, D // 32)[None, :], mask=valid[:, None], other=127)
        values = tl.interleave(e2m1_to_bfloat16(codes), e2m1_to_bfloat16(codes >> 4))
        rows = tl.reshape(tl.reshape(values, N, D // 32, 32) * ue8m0_to_bfloat16(code)[:, :, None], N, D)
    else:
        rows = tl.load(data[:, None] + tl.arange(0, D)[None, :], mask=valid[:, None], other=0.0).to(tl.bfloat16)
    return rows


@triton.jit
def read_turning(turning, valid, ROPE: tl.constexpr):
    """bfloat16 `[N, ROPE]`: the rotated channels of "v4" rows at pointers `turning[N]`."""
    return tl.load(turning[:, None] + tl.arange(0, ROPE)[None, :], mask=valid[:, None], other=0.0)


@triton.jit
def write_rows(
    x,
    data,
    scales,
    turning,
    page_bytes,
    physical,
    valid,
    ROPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
):
    """Quantise float32 `x[N, D]` as the layout does and store it at rows `physical[N]` (int64) where `valid`."""
    N: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    data_at, scale_at, turning_at = row_places(physical, page_bytes, D, ROPE, BLOCK, KIND)
    column = tl.arange(0, D)
    at = data + data_at[:, None] + column[None, :]
    here = valid[:, None]
    if KIND == "v4":
        CODES: tl.constexpr = D - ROPE
        codes, scale = e4m3_blocks(x, 64)
        tl.store(scales + (data_at * 4)[:, None] + column[None, :], codes, mask=here & (column < CODES)[None, :])
        group = tl.arange(0, D // 64)
        at = scales + scale_at[:, None] + group[None, :]
        tl.store(at, scale.to(tl.uint8), mask=here & (group < CODES // 64)[None, :])
        at = turning + (turning_at - CODES)[:, None] + column[None, :]
        tl.store(at, x.to(tl.bfloat16), mask=here & (column >= CODES)[None, :])
    elif KIND == "fp8":
        codes, scale = e4m3_blocks(x, D)
        tl.store(at, codes, mask=here)
        tl.store(scales + scale_at[:, None] + tl.arange(0, 1)[None, :], ue8m0_to_float32(scale), mask=here)
    elif KIND == "mxfp4":
        codes, scale = e2m1_blocks(x)
        tl.store(data + data_at[:, None] + tl.arange(0, D // 2)[None, :], codes, mask=here)
        tl.store(scales + scale_at[:, None] + tl.arange(0, D // 32)[None, :], scale.to(tl.uint8), mask=here)
    elif KIND == "bf16_e4m3":
        codes, scale = e4m3_blocks(x, 64)
        values = tl.reshape(e4m3_to_float32(codes), N, D // 64, 64) * ue8m0_to_float32(scale)[:, :, None]
        is_code = (column < D - ROPE)[None, :]
        tl.store(at, tl.where(is_code, tl.reshape(values, N, D), x).to(tl.bfloat16), mask=here)
    elif KIND == "bf16_e2m1":
        tl.store(at, quantised(x, "e2m1_32"), mask=here)
    else:
        tl.store(at, x.to(data.dtype.element_ty), mask=here)


@triton.jit
def locate(table, table_width, slot, row, wanted, BLOCK: tl.constexpr):
    """Physical rows (int64) of rows `row[N]` of the request in `slot`, and which of the wanted ones are mapped.

    The others are row 0: some chips compute an address, and read it, before they look at the mask.
    """
    block = row // BLOCK
    inside = wanted & (row >= 0) & (block < table_width)
    page = tl.load(table + slot * table_width + tl.where(inside, block, 0), mask=inside, other=-1).to(tl.int64)
    mapped = inside & (page >= 0)
    return tl.where(mapped, page * BLOCK + row % BLOCK, 0), mapped
