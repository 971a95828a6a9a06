"""Rows of paged caches, read and written in place.

A page is bytes; kernels get it three times, as uint8, bfloat16 and float32, so that no pointer is cast. Layouts, with
`B` rows of `D` channels per page (`hal.layouts` defines them):

- "v4": per row `D - ROPE` e4m3 codes and ROPE bfloat16 channels; behind the page's rows, per row one ue8m0 scale for
  each 64 codes, padded to SCALES bytes (the 584-byte record of DeepSeek-V4's FlashMLA format);
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

from hal_triton.bits import (
    e2m1_to_bfloat16,
    e4m3_to_bfloat16,
    ue8m0_to_bfloat16,
    ue8m0_to_float32,
)
from hal_triton.codes import e2m1_blocks, e4m3_blocks

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


@dataclass(frozen=True)
class Pages:
    """A cache as kernels take it: its pages by element type, and its geometry."""

    bytes: torch.Tensor
    halves: torch.Tensor
    words: torch.Tensor
    page_bytes: int
    block: int
    kind: str

    @classmethod
    def of(cls, cache: Any) -> Pages:
        """View the pages of a `hal.cache.KVCache`."""
        raw = cache.pages.view(torch.uint8) if cache.pages.dtype != torch.uint8 else cache.pages
        flat = raw.reshape(-1)
        layout = cache.layout
        return cls(
            flat,
            flat.view(torch.bfloat16),
            flat[: flat.numel() // 4 * 4].view(torch.float32),
            layout.page_bytes,
            layout.block_size,
            KINDS[layout.name],
        )


@triton.jit
def read_rows(
    bytes_,
    halves,
    words,
    page_bytes,
    physical,
    valid,
    D: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
):
    """bfloat16 `[N, D]`: rows `physical[N]` (int64) where `valid`, else zeros.

    "v4" rows come without their last ROPE channels, zeros instead (`read_turning`); "fp8" rows without their scale.
    """
    N: tl.constexpr = physical.shape[0]
    page = physical // BLOCK
    offset = physical % BLOCK
    start = page * page_bytes
    column = tl.arange(0, D)
    if KIND == "v4":
        CODES: tl.constexpr = D - ROPE
        ROW: tl.constexpr = CODES + 2 * ROPE
        SCALES: tl.constexpr = (CODES // 64 + 7) // 8 * 8
        here = start + offset * ROW
        at = bytes_ + here[:, None] + column[None, :]
        codes = tl.load(at, mask=valid[:, None] & (column < CODES)[None, :], other=0)
        group = tl.arange(0, D // 64)
        at = bytes_ + (start + BLOCK * ROW + offset * SCALES)[:, None] + group[None, :]
        scale = tl.load(at, mask=valid[:, None] & (group < CODES // 64)[None, :], other=127)
        values = tl.reshape(e4m3_to_bfloat16(codes), N, D // 64, 64) * ue8m0_to_bfloat16(scale)[:, :, None]
        rows = tl.reshape(values, N, D)
    elif KIND == "fp8":
        at = bytes_ + (start + offset * D)[:, None] + column[None, :]
        rows = e4m3_to_bfloat16(tl.load(at, mask=valid[:, None], other=0))
    elif KIND == "mxfp4":
        half = tl.arange(0, D // 2)
        at = bytes_ + (start + offset * (D // 2))[:, None] + half[None, :]
        codes = tl.load(at, mask=valid[:, None], other=0)
        group = tl.arange(0, D // 32)
        at = bytes_ + (start + BLOCK * (D // 2) + offset * (D // 32))[:, None] + group[None, :]
        scale = tl.load(at, mask=valid[:, None], other=127)
        values = tl.interleave(e2m1_to_bfloat16(codes), e2m1_to_bfloat16(codes >> 4))
        rows = tl.reshape(tl.reshape(values, N, D // 32, 32) * ue8m0_to_bfloat16(scale)[:, :, None], N, D)
    elif KIND == "f32":
        at = words + (start // 4 + offset * D)[:, None] + column[None, :]
        rows = tl.load(at, mask=valid[:, None], other=0.0).to(tl.bfloat16)
    else:
        at = halves + (start // 2 + offset * D)[:, None] + column[None, :]
        rows = tl.load(at, mask=valid[:, None], other=0.0)
    return rows


@triton.jit
def read_turning(halves, page_bytes, physical, valid, D: tl.constexpr, ROPE: tl.constexpr, BLOCK: tl.constexpr):
    """bfloat16 `[N, ROPE]`: the last channels of "v4" rows."""
    CODES: tl.constexpr = D - ROPE
    here = (physical // BLOCK) * page_bytes + (physical % BLOCK) * (CODES + 2 * ROPE) + CODES
    return tl.load(halves + (here // 2)[:, None] + tl.arange(0, ROPE)[None, :], mask=valid[:, None], other=0.0)


@triton.jit
def read_scales(words, page_bytes, physical, valid, D: tl.constexpr, BLOCK: tl.constexpr):
    """float32 `[N]`: scales of "fp8" rows."""
    at = words + (physical // BLOCK) * (page_bytes // 4) + BLOCK * (D // 4) + physical % BLOCK
    return tl.load(at, mask=valid, other=0.0)


@triton.jit
def write_rows(
    x,
    bytes_,
    halves,
    words,
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
    page = physical // BLOCK
    offset = physical % BLOCK
    start = page * page_bytes
    column = tl.arange(0, D)
    if KIND == "v4" or KIND == "bf16_e4m3":
        CODES: tl.constexpr = D - ROPE
        codes, scale = e4m3_blocks(x, 64)
        if KIND == "v4":
            ROW: tl.constexpr = CODES + 2 * ROPE
            SCALES: tl.constexpr = (CODES // 64 + 7) // 8 * 8
            here = start + offset * ROW
            is_code = column < CODES
            tl.store(bytes_ + here[:, None] + column[None, :], codes, mask=valid[:, None] & is_code[None, :])
            at = halves + ((here + CODES) // 2)[:, None] + (column - CODES)[None, :]
            tl.store(at, x.to(tl.bfloat16), mask=valid[:, None] & (column >= CODES)[None, :])
            group = tl.arange(0, D // 64)
            at = bytes_ + (start + BLOCK * ROW + offset * SCALES)[:, None] + group[None, :]
            tl.store(at, scale.to(tl.uint8), mask=valid[:, None] & (group < CODES // 64)[None, :])
        else:
            values = tl.reshape(e4m3_to_bfloat16(codes), N, D // 64, 64) * ue8m0_to_bfloat16(scale)[:, :, None]
            rounded = tl.where((column < CODES)[None, :], tl.reshape(values, N, D), x.to(tl.bfloat16))
            at = halves + (start // 2 + offset * D)[:, None] + column[None, :]
            tl.store(at, rounded, mask=valid[:, None])
    elif KIND == "fp8":
        codes, scale = e4m3_blocks(x, D)
        at = bytes_ + (start + offset * D)[:, None] + column[None, :]
        tl.store(at, codes, mask=valid[:, None])
        at = words + (start // 4 + BLOCK * (D // 4) + offset)[:, None] + tl.arange(0, 1)[None, :]
        tl.store(at, ue8m0_to_float32(scale), mask=valid[:, None])
    elif KIND == "mxfp4" or KIND == "bf16_e2m1":
        codes, scale = e2m1_blocks(x)
        if KIND == "mxfp4":
            half = tl.arange(0, D // 2)
            at = bytes_ + (start + offset * (D // 2))[:, None] + half[None, :]
            tl.store(at, codes, mask=valid[:, None])
            group = tl.arange(0, D // 32)
            at = bytes_ + (start + BLOCK * (D // 2) + offset * (D // 32))[:, None] + group[None, :]
            tl.store(at, scale.to(tl.uint8), mask=valid[:, None])
        else:
            values = tl.interleave(e2m1_to_bfloat16(codes), e2m1_to_bfloat16(codes >> 4))
            values = tl.reshape(values, N, D // 32, 32) * ue8m0_to_bfloat16(scale.to(tl.uint8))[:, :, None]
            at = halves + (start // 2 + offset * D)[:, None] + column[None, :]
            tl.store(at, tl.reshape(values, N, D), mask=valid[:, None])
    elif KIND == "f32":
        at = words + (start // 4 + offset * D)[:, None] + column[None, :]
        tl.store(at, x, mask=valid[:, None])
    else:
        at = halves + (start // 2 + offset * D)[:, None] + column[None, :]
        tl.store(at, x.to(tl.bfloat16), mask=valid[:, None])


@triton.jit
def locate(table, table_width, slot, row, wanted, BLOCK: tl.constexpr):
    """Physical rows (int64) of rows `row[N]` of the request in `slot`, and which of the wanted ones are mapped."""
    block = row // BLOCK
    inside = wanted & (row >= 0) & (block < table_width)
    page = tl.load(table + slot * table_width + block, mask=inside, other=-1).to(tl.int64)
    return page * BLOCK + row % BLOCK, inside & (page >= 0)
