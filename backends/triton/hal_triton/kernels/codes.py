"""Activation quantisers on tiles: a tile in registers to codes and scales in memory."""

import triton
import triton.language as tl

from hal_triton.kernels.bits import (
    INVERSE_6,
    INVERSE_448,
    block_scale,
    e2m1_to_bfloat16,
    e4m3_to_float32,
    float32_to_e2m1,
    float32_to_e4m3,
    int64,
    inverse_power,
    magnitude_bits,
    ue8m0_to_bfloat16,
)

E4M3_FLOOR = tl.constexpr(1e-4)
INT8_FLOOR = tl.constexpr(1.27e-8)
E2M1_FLOOR = tl.constexpr(7.052966104933725e-38)  # 6 * 2**-126


@triton.jit
def e4m3_blocks(x, BLOCK: tl.constexpr):
    """float32 `[R, C]` to e4m3 codes (uint8) `[R, C]` and ue8m0 scales (int32) `[R, C / BLOCK]`."""
    R: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    parts = tl.reshape(x, R, C // BLOCK, BLOCK)
    scale = block_scale(tl.max(magnitude_bits(parts), 2), INVERSE_448, E4M3_FLOOR)
    codes = float32_to_e4m3(parts * inverse_power(scale)[:, :, None])
    codes = tl.where((scale == 255)[:, :, None], 0x7F, codes).to(tl.uint8)
    return tl.reshape(codes, R, C), scale


@triton.jit
def e2m1_blocks(x):
    """float32 `[R, C]` to packed e2m1 bytes (uint8) `[R, C / 2]` and ue8m0 scales (int32) `[R, C / 32]`."""
    R: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    parts = tl.reshape(x, R, C // 32, 32)
    scale = block_scale(tl.max(magnitude_bits(parts), 2), INVERSE_6, E2M1_FLOOR)
    codes = float32_to_e2m1(parts * inverse_power(scale)[:, :, None])
    codes = tl.where((scale == 255)[:, :, None], 0, codes)
    low, high = tl.split(tl.reshape(codes, R, C // 2, 2))
    return (low | (high << 4)).to(tl.uint8), scale


@triton.jit
def quantised(x, ACTIVATION: tl.constexpr):
    """bfloat16 `[R, C]`: what float32 x is behind the quantiser; values of e4m3 and e2m1 with their scale are exact."""
    R: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    if ACTIVATION == "bf16":
        result = x.to(tl.bfloat16)
    elif ACTIVATION == "e2m1_32":
        codes, scale = e2m1_blocks(x)
        values = tl.interleave(e2m1_to_bfloat16(codes), e2m1_to_bfloat16(codes >> 4))
        result = tl.reshape(tl.reshape(values, R, C // 32, 32) * ue8m0_to_bfloat16(scale)[:, :, None], R, C)
    else:
        BLOCK: tl.constexpr = 128 if ACTIVATION == "e4m3_128" else 64 if ACTIVATION == "e4m3_64" else 32
        codes, scale = e4m3_blocks(x, BLOCK)
        values = tl.reshape(e4m3_to_float32(codes).to(tl.bfloat16), R, C // BLOCK, BLOCK)
        result = tl.reshape(values * ue8m0_to_bfloat16(scale)[:, :, None], R, C)
    return result


@triton.jit
def store_tile(x, codes, scales, row, in_rows, first, width, ACTIVATION: tl.constexpr):
    """Quantise float32 `x[R, C]`, columns `first..` of rows that are `width` wide, and store codes and scales.

    C is a multiple of the quantiser's block, and whole blocks past `width` are not stored.
    """
    C: tl.constexpr = x.shape[1]
    column = first + tl.arange(0, C)
    if ACTIVATION == "none":
        at = codes + row[:, None] * width + column[None, :]
        tl.store(at, x.to(codes.dtype.element_ty), mask=in_rows[:, None] & (column < width)[None, :])
    else:
        BLOCK: tl.constexpr = 128 if ACTIVATION == "e4m3_128" else 64 if ACTIVATION == "e4m3_64" else 32
        if ACTIVATION == "e2m1_32":
            bytes_, scale = e2m1_blocks(x)
            half = first // 2 + tl.arange(0, C // 2)
            at = codes + row[:, None] * (width // 2) + half[None, :]
            tl.store(at, bytes_, mask=in_rows[:, None] & (half * 2 < width)[None, :])
        else:
            bytes_, scale = e4m3_blocks(x, BLOCK)
            at = codes + row[:, None] * width + column[None, :]
            tl.store(at, bytes_, mask=in_rows[:, None] & (column < width)[None, :])
        blocks = (width + BLOCK - 1) // BLOCK
        block = first // BLOCK + tl.arange(0, C // BLOCK)
        at = scales + row[:, None] * blocks + block[None, :]
        tl.store(at, scale.to(tl.uint8), mask=in_rows[:, None] & (block < blocks)[None, :])


@triton.jit
def store_int8_row(x, codes, scales, row, column, width):
    """Quantise one row `x[C]` (float32, zero past `width`) to int8 with one float32 scale."""
    bits = tl.max(magnitude_bits(x)[None, :], 1)  # of one element: not every chip divides scalars
    amax = tl.maximum(bits.to(tl.float32, bitcast=True), INT8_FLOOR)
    finite = bits < 0x7F800000
    scale = tl.where(finite, tl.div_rn(amax, tl.full((1,), 127.0, tl.float32)), float("nan"))
    # 1.5 * 2**23 leaves float32 no room for fractions: rounded to nearest even
    value = tl.div_rn(x, tl.zeros_like(x) + scale) + 12582912.0 - 12582912.0
    value = tl.where(finite, value, 0.0)
    tl.store(codes + row * width + column, value.to(tl.int8), mask=column < width)
    tl.store(scales + row + tl.arange(0, 1), scale)


@triton.jit
def quantize_kernel(x, codes, scales, rows, width, R: tl.constexpr, C: tl.constexpr, ACTIVATION: tl.constexpr):
    """`quant.quantize` for block quantisers: x[rows, width]; a tile is R rows of C columns."""
    row_tiles = tl.cdiv(rows, R)
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(width, C), tl.num_programs(0)):
        row = ((tile % row_tiles) * R + tl.arange(0, R)).to(tl.int64)
        first = (tile // row_tiles) * C
        column = first + tl.arange(0, C)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        values = tl.load(x + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
        store_tile(values, codes, scales, row, row < rows, first, width, ACTIVATION)


@triton.jit
def quantize_int8_kernel(x, codes, scales, rows, width, C: tl.constexpr):
    """`quant.quantize` for "int8_token": one program per row, which fits C columns."""
    column = tl.arange(0, C)
    for tile in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = int64(tile)
        values = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
        store_int8_row(values, codes, scales, row, column, width)
