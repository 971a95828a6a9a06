"""Matrix products of quantised operands: one inner loop for every scheme, dense and grouped.

Codes always arrive as bytes (uint8). `UNIT` names what multiplies:

- "bf16": codes become bfloat16 with their power-of-two scale folded in, which is exact, so one accumulator runs through
  all of K. Every chip can do this;
- "fp8": e4m3 codes go into the matrix unit as they are; each 128 columns of K are summed on their own and scaled in
  float32, which also keeps Hopper's 14-bit accumulation short (DeepSeek-V3 technical report, section 3.3.2);
- "scaled": codes and ue8m0 scales go into the block-scaled matrix unit of Blackwell;
- "widened": likewise, e2m1 codes as the e4m3 codes of the same values: Triton gives sm120's unit two operands alike;
- "int8": int8 codes, int32 accumulator, scaled once at the end.

A formats: "bf16", "e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32" with ue8m0 scales `[rows, K / block]`, "int8_token" with
float32 scales `[rows]`. W formats: "bf16", "fp8_block128" (scales `[N / 128, K / 128]`, ue8m0 or float32), "mxfp4"
(`[N, K / 2]` bytes, low nibble first, ue8m0 `[N, K / 32]`), "mxfp8" (ue8m0 `[N, K / 32]`), "w8a8_int8" (float32 `[N]`).
"""

import triton
import triton.language as tl

from hal_triton.kernels.bits import (
    e2m1_to_bfloat16,
    e2m1_to_e4m3,
    e4m3_to_float32,
    int64,
    ue8m0_to_bfloat16,
    ue8m0_to_float32,
)


@triton.jit
def load_columns(base, row, in_rows, first, width, COUNT: tl.constexpr, EVEN: tl.constexpr, OTHER: tl.constexpr):
    """`[rows, COUNT]` of a matrix with `width` columns, from column `first`; EVEN: COUNT divides `width`."""
    column = first + tl.arange(0, COUNT)
    inside = in_rows[:, None] if EVEN else in_rows[:, None] & (column < width)[None, :]
    return tl.load(base + row[:, None] * width + column[None, :], mask=inside, other=OTHER)


@triton.jit
def scaled(values, scales, row, in_rows, k, K, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """bfloat16 values `[rows, columns]` times their ue8m0 scales, one per BLOCK columns from column k."""
    ROWS: tl.constexpr = values.shape[0]
    COLUMNS: tl.constexpr = values.shape[1]
    blocks = (K + BLOCK - 1) // BLOCK
    if BLOCK >= COLUMNS:
        scale = tl.load(scales + row * blocks + k // BLOCK, mask=in_rows, other=127)
        result = values * ue8m0_to_bfloat16(scale)[:, None]
    else:
        PARTS: tl.constexpr = COLUMNS // BLOCK
        scale = load_columns(scales, row, in_rows, k // BLOCK, blocks, PARTS, EVEN, 127)
        parts = tl.reshape(values, ROWS, PARTS, BLOCK) * ue8m0_to_bfloat16(scale)[:, :, None]
        result = tl.reshape(parts, ROWS, COLUMNS)
    return result


@triton.jit
def e2m1_pairs(codes):
    """Bytes `[rows, n]` of two e2m1 codes each to bfloat16 `[rows, 2n]`; the low nibble comes first."""
    return tl.interleave(e2m1_to_bfloat16(codes), e2m1_to_bfloat16(codes >> 4))


@triton.jit
def activation_tile(a, scales, row, in_rows, k, K, BK: tl.constexpr, A: tl.constexpr, EVEN: tl.constexpr):
    """A tile `[BM, BK]` of A in bfloat16, dequantised."""
    if A == "bf16":
        tile = load_columns(a, row, in_rows, k, K, BK, EVEN, 0.0)
    else:
        if A == "e2m1_32":
            values = e2m1_pairs(load_columns(a, row, in_rows, k // 2, K // 2, BK // 2, EVEN, 0))
        else:
            values = e4m3_to_float32(load_columns(a, row, in_rows, k, K, BK, EVEN, 0)).to(tl.bfloat16)
        BLOCK: tl.constexpr = 128 if A == "e4m3_128" else 64 if A == "e4m3_64" else 32
        tile = scaled(values, scales, row, in_rows, k, K, BLOCK, EVEN)
    return tile


@triton.jit
def weight_tile(w, scales, row, in_rows, k, K, BK: tl.constexpr, W: tl.constexpr, EVEN: tl.constexpr):
    """A tile `[BN, BK]` of W in bfloat16. Scales per 32 columns are folded in, those of fp8_block128 are not."""
    if W == "bf16":
        tile = load_columns(w, row, in_rows, k, K, BK, EVEN, 0.0)
    elif W == "mxfp4":
        tile = e2m1_pairs(load_columns(w, row, in_rows, k // 2, K // 2, BK // 2, EVEN, 0))
    else:
        tile = e4m3_to_float32(load_columns(w, row, in_rows, k, K, BK, EVEN, 0)).to(tl.bfloat16)
    if W == "mxfp4" or W == "mxfp8":
        tile = scaled(tile, scales, row, in_rows, k, K, 32, EVEN)
    return tile


@triton.jit
def block_weight_scale(scales, row, in_rows, k, K):
    """Scales `[BN]` of fp8_block128 rows at column k, in float32."""
    scale = tl.load(scales + (row // 128) * ((K + 127) // 128) + k // 128, mask=in_rows, other=0)
    if scales.dtype.element_ty == tl.float32:  # noqa: SIM108  compile-time branch
        result = scale
    else:
        result = ue8m0_to_float32(scale)
    return result


@triton.jit
def e4m3(codes):
    """Bytes as the chip's own e4m3 type."""
    return codes.to(tl.float8e4nv, bitcast=True)


@triton.jit
def product(
    a,
    a_scales,
    row,
    in_rows,
    w,
    w_scales,
    column,
    in_columns,
    K,
    BK: tl.constexpr,
    A: tl.constexpr,
    W: tl.constexpr,
    UNIT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """float32 `[BM, BN]`: rows `row` of A times rows `column` of W (both int64), dequantised."""
    BM: tl.constexpr = row.shape[0]
    BN: tl.constexpr = column.shape[0]
    end = tl.where(tl.max(in_rows.to(tl.int32), 0) > 0, K, 0)  # nothing for a tile without rows
    acc = tl.zeros((BM, BN), tl.int32 if UNIT == "int8" else tl.float32)
    for k in range(0, end, BK):
        if UNIT == "int8":
            x = load_columns(a, row, in_rows, k, K, BK, EVEN, 0)
            y = load_columns(w, column, in_columns, k, K, BK, EVEN, 0)
            acc = tl.dot(x, tl.trans(y), acc, out_dtype=tl.int32)
        elif UNIT == "fp8":
            x = e4m3(load_columns(a, row, in_rows, k, K, BK, EVEN, 0))
            y = e4m3(load_columns(w, column, in_columns, k, K, BK, EVEN, 0))
            blocks = (K + 127) // 128
            row_scale = ue8m0_to_float32(tl.load(a_scales + row * blocks + k // 128, mask=in_rows, other=127))
            column_scale = block_weight_scale(w_scales, column, in_columns, k, K)
            acc += tl.dot(x, tl.trans(y)) * row_scale[:, None] * column_scale[None, :]
        elif UNIT == "scaled" or UNIT == "widened":
            BLOCK: tl.constexpr = 128 if A == "e4m3_128" else 64 if A == "e4m3_64" else 32
            block = k // 32 + tl.arange(0, BK // 32)
            inside = in_rows[:, None] & (block * 32 < K)[None, :]
            sx_at = a_scales + row[:, None] * ((K + BLOCK - 1) // BLOCK) + (block * 32 // BLOCK)[None, :]
            sx = tl.load(sx_at, mask=inside, other=127)
            sy = load_columns(w_scales, column, in_columns, k // 32, K // 32, BK // 32, EVEN, 127)
            x = e4m3(load_columns(a, row, in_rows, k, K, BK, EVEN, 0))
            if W == "mxfp4":
                y = load_columns(w, column, in_columns, k // 2, K // 2, BK // 2, EVEN, 0)
                if UNIT == "widened":
                    wide = e4m3(tl.interleave(e2m1_to_e4m3(y), e2m1_to_e4m3(y >> 4)))
                    acc = tl.dot_scaled(x, sx, "e4m3", tl.trans(wide), sy, "e4m3", acc)
                else:
                    acc = tl.dot_scaled(x, sx, "e4m3", tl.trans(y), sy, "e2m1", acc)
            else:
                y = e4m3(load_columns(w, column, in_columns, k, K, BK, EVEN, 0))
                acc = tl.dot_scaled(x, sx, "e4m3", tl.trans(y), sy, "e4m3", acc)
        elif W == "fp8_block128":
            x = activation_tile(a, a_scales, row, in_rows, k, K, BK, A, EVEN)
            y = weight_tile(w, w_scales, column, in_columns, k, K, BK, W, EVEN)
            acc += tl.dot(x, tl.trans(y)) * block_weight_scale(w_scales, column, in_columns, k, K)[None, :]
        else:
            x = activation_tile(a, a_scales, row, in_rows, k, K, BK, A, EVEN)
            y = weight_tile(w, w_scales, column, in_columns, k, K, BK, W, EVEN)
            acc = tl.dot(x, tl.trans(y), acc)
    if UNIT == "int8":
        row_scale = tl.load(a_scales + row, mask=in_rows, other=0.0)
        column_scale = tl.load(w_scales + column, mask=in_columns, other=0.0)
        result = acc.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
    else:
        result = acc
    return result


@triton.jit
def tile_rows(m, rows, first_row, last_row, expert, BM: tl.constexpr, GROUPED: tl.constexpr):
    """Rows `[BM]` (int64) of row tile m, which of them exist, and the expert whose weights they meet."""
    if GROUPED:
        start = tl.load(first_row + m)
        end = tl.load(last_row + m)
        which = tl.load(expert + m).to(tl.int64)
    else:
        start = m * BM
        end = rows
        which = int64(0)
    row = start + tl.arange(0, BM)
    return row.to(tl.int64), row < end, which


@triton.jit
def linear_kernel(
    a,
    a_scales,
    w,
    w_scales,
    out,
    first_row,
    last_row,
    expert,
    rows,
    row_tiles,
    N,
    K,
    w_stride,
    w_scale_stride,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    A: tl.constexpr,
    W: tl.constexpr,
    UNIT: tl.constexpr,
    GROUPED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """`out[rows, N] = A @ W.T`, dense, or per row tile with the weights of the tile's expert (GROUPED)."""
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(N, BN), tl.num_programs(0)):
        row, in_rows, which = tile_rows(tile % row_tiles, rows, first_row, last_row, expert, BM, GROUPED)
        column = ((tile // row_tiles) * BN + tl.arange(0, BN)).to(tl.int64)
        in_columns = column < N
        acc = product(
            a,
            a_scales,
            row,
            in_rows,
            w + which * w_stride,
            w_scales + which * w_scale_stride,
            column,
            in_columns,
            K,
            BK,
            A,
            W,
            UNIT,
            EVEN,
        )
        inside = in_rows[:, None] & in_columns[None, :]
        tl.store(out + row[:, None] * N + column[None, :], acc.to(out.dtype.element_ty), mask=inside)
