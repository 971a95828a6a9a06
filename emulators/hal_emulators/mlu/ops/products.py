"""Matrix products: `matmul`, `scaled_matmul`, `group_gemm`, `smooth_quant_group_gemm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import BYTES, FLOATS, HALVES, INT32, Checks, operator

F32 = (torch.float32,)
E4M3, E8M0 = (torch.float8_e4m3fn,), (torch.float8_e8m0fnu,)
BLOCK, MX = 128, 32
"""Channels per scale of FP8 blocks and of microscaling."""

_FLOAT8 = False
"""Whether the emulated card multiplies 8-bit floats; no public source says which cards do."""


def float8(there: bool) -> None:
    """Set what the emulated card multiplies."""
    global _FLOAT8
    _FLOAT8 = there


GROUPS = range(64, 1025)  # channels per int4 scale


def _int4(packed: Tensor) -> Tensor:
    """int8 [.., k / 2] -> the two signed values of each byte, low nibble first: [.., k] float32."""
    low, high = (packed << 4) >> 4, packed >> 4
    return torch.stack([low, high], dim=-1).flatten(-2).float()


@operator
def matmul(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    c: Tensor | None = None,
    act_mode: str = "none",
    alpha: float = 1.0,
    beta: float = 0.0,
    fast_act: bool = True,
    approximate: bool = True,
    dtype: torch.dtype | None = None,
    a_scale: float | None = None,
    b_scale: float | None = None,
    trans_a: bool = False,
    trans_b: bool = True,
    tile_config: Any = None,
    output: Tensor | None = None,
) -> Tensor:
    check = Checks("matmul")
    check("a", a, FLOATS, "k m" if trans_a else "m k")
    check("b", b, (a.dtype,), "n k" if trans_b else "k n")
    check.absent(bias=bias, c=c, a_scale=a_scale, b_scale=b_scale)
    check.that(act_mode == "none", f"act_mode {act_mode!r} is not emulated")
    made = (a.T if trans_a else a).float() @ (b.T if trans_b else b).float() * alpha
    made = made.to(dtype or a.dtype)
    return made if output is None else output.copy_(made)


@operator
def scaled_matmul(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    output_dtype: torch.dtype,
    bias: Tensor | None = None,
    c: Tensor | None = None,
    act_mode: str = "none",
    quant_bit_size: int = 8,
    alpha: float = 1.0,
    beta: float = 1.0,
    use_hp_active: bool = False,
    a_quant_bit_size: int = -1,
    a_calib: Tensor | None = None,
    b_calib: Tensor | None = None,
    output: Tensor | None = None,
    tile_config: Any = None,
) -> Tensor:
    check = Checks("scaled_matmul")
    if a.dtype in E4M3:
        check.absent(bias=bias, c=c, a_calib=a_calib, b_calib=b_calib)
        check.that(output_dtype in HALVES, f"output_dtype is {output_dtype}, wanted half or bfloat16")
        made = (_blocks(check, a, b, a_scale, b_scale) * alpha).to(output_dtype)
        return made if output is None else output.copy_(made)
    check("a", a, BYTES, "m k")
    check("a_scale", a_scale, F32, "m")
    check.absent(bias=bias, c=c, a_calib=a_calib, b_calib=b_calib)
    check.that(output_dtype in HALVES, f"output_dtype is {output_dtype}, wanted half or bfloat16")
    check.that(quant_bit_size in (4, 8), f"quant_bit_size is {quant_bit_size}")
    check.that(act_mode == "none", f"act_mode {act_mode!r} is not emulated")
    if quant_bit_size == 8:
        check("b", b, BYTES, "n k")
        check("b_scale", b_scale, F32, "n")
        made = (a.double() @ b.double().T).float() * b_scale
    else:
        check.that(a.shape[1] % 2 == 0, "int4 needs an even k")
        check.sizes["half"] = a.shape[1] // 2
        check("b", b, BYTES, "n half")
        check("b_scale", b_scale, F32, "n groups")
        made = a.float() @ (_int4(b) * _spread(check, b_scale, a.shape[1])).T
    made = (made * a_scale[:, None] * alpha).to(output_dtype)
    return made if output is None else output.copy_(made)


def _blocks(check: Checks, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    """FP8 with a scale per 128 channels of a row, and per 128 x 128 block of the weight: float32 [m, n]."""
    check.that(_FLOAT8, "this card multiplies no 8-bit floats (ARCH_MISMATCH)")
    check("a", a, E4M3, "m k")
    check("b", b, E4M3, "n k")
    n, k = b.shape
    check.that(n % BLOCK == 0 and k % BLOCK == 0, f"b is {[n, k]}, wanted multiples of {BLOCK}")
    check.sizes |= {"rows": n // BLOCK, "columns": k // BLOCK}
    check("a_scale", a_scale, F32, "m columns")
    check("b_scale", b_scale, F32, "rows columns")
    left = a.float() * a_scale.repeat_interleave(BLOCK, 1)
    return left @ (b.float() * b_scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)).T


def _spread(check: Checks, scale: Tensor, k: int) -> Tensor:
    """Scales [n, groups] per channel, [n, k]."""
    size, rest = divmod(k, scale.shape[-1])
    check.that(not rest and size in GROUPS, f"groups of {k}/{scale.shape[-1]} channels, wanted 64..1024")
    return scale.repeat_interleave(size, dim=-1)


def _segments(check: Checks, counts: Tensor, rows: int, most: int) -> list[tuple[int, int]]:
    check.that(int(counts.sum()) <= rows, f"the groups hold {int(counts.sum())} rows, the input {rows}")
    check.that(
        not len(counts) or int(counts.max()) <= most, f"a group holds {int(counts.max())} rows, more than {most}"
    )
    ends = counts.cumsum(0).tolist()
    return [(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]


@operator
def group_gemm(
    a: Tensor,
    b: Tensor,
    group_list: Tensor,
    expand_idx: Tensor | None,
    c: Tensor | None,
    alpha: Any,
    beta: Any,
    max_in_group_list: int,
    bias: Tensor | None = None,
    d: Tensor | None = None,
    trans_a: bool = False,
    trans_b: bool = True,
    tile_config: Any = None,
    idx_offset: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    check = Checks("group_gemm")
    check("a", a, FLOATS, "m k")
    check("b", b, (a.dtype,), "experts n k")
    check("group_list", group_list, INT32, "experts")
    check.absent(expand_idx=expand_idx, c=c, alpha=alpha, beta=beta, bias=bias, idx_offset=idx_offset)
    check.that(trans_b and not trans_a, "only trans_b is emulated")
    made = torch.full((len(a), b.shape[1]), torch.nan, dtype=output_dtype or a.dtype)  # rows of no group stay unwritten
    for (begin, end), weight in zip(_segments(check, group_list, len(a), max_in_group_list), b, strict=True):
        made[begin:end] = (a[begin:end].float() @ weight.float().T).to(made.dtype)
    return made if d is None else d.copy_(made)


@operator
def smooth_quant_group_gemm(
    a: Tensor,
    b: Tensor,
    m_list: Tensor,
    expand_idx: Tensor | None,
    c: Tensor | None,
    alpha: Any,
    beta: Any,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    max_m: int,
    bias: Tensor | None = None,
    quant_flag: list[int] | None = None,
    d: Tensor | None = None,
    tile_config: Any = None,
    a_calibration: Tensor | None = None,
    b_calibration: Tensor | None = None,
    a_quant_bit_size: int = 8,
    a_lora: Tensor | None = None,
    b_lora: Tensor | None = None,
    idx_offset: Tensor | None = None,
    is_symmetric_quant: bool = True,
) -> Tensor:
    check = Checks("smooth_quant_group_gemm")
    check("m_list", m_list, INT32, "experts")
    if a.dtype in E4M3:
        rows, weights = _float8_group(check, a, b, a_scale, b_scale)
    else:
        check("a", a, BYTES, "m k")
        check("a_scale", a_scale, F32, "m")
    check.absent(expand_idx=expand_idx, c=c, alpha=alpha, beta=beta, bias=bias, idx_offset=idx_offset)
    check.absent(a_calibration=a_calibration, b_calibration=b_calibration, a_lora=a_lora, b_lora=b_lora)
    check.that(dtype in HALVES, f"dtype is {dtype}, wanted half or bfloat16")
    check.that(is_symmetric_quant and a_quant_bit_size == 8, "only symmetric int8 activations")
    if a.dtype in E4M3:
        check.absent(quant_flag=quant_flag)
    elif quant_flag is None:
        rows = a.float() * a_scale[:, None]
        check("b", b, BYTES, "experts n k")
        check("b_scale", b_scale, F32, "experts n")
        weights = b.float() * b_scale[..., None]
    else:
        rows = a.float() * a_scale[:, None]
        check("b_scale", b_scale, F32, "groups experts n")
        check.that(
            len(quant_flag) == b_scale.shape[0] * b_scale.shape[1], "quant_flag has one entry per expert and group"
        )
        check.that(set(quant_flag) == {4}, "only groups of int4 are emulated")
        check.sizes["half"] = a.shape[1] // 2
        check("b", b, BYTES, "experts n half")
        scales = b_scale.permute(1, 2, 0).flatten(0, 1)
        weights = _int4(b) * _spread(check, scales, a.shape[1]).view(*b.shape[:2], -1)
    made = torch.full((len(a), b.shape[1]), torch.nan, dtype=dtype)
    for (begin, end), weight in zip(_segments(check, m_list, len(a), max_m), weights, strict=True):
        made[begin:end] = (rows[begin:end] @ weight.T).to(dtype)
    return made if d is None else d.copy_(made)


def _float8_group(check: Checks, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and experts' weights as float32: blocks of 128 with float32 scales, or microscaling with e8m0 scales."""
    check.that(_FLOAT8, "this card multiplies no 8-bit floats (ARCH_MISMATCH)")
    check("a", a, E4M3, "m k")
    check("b", b, E4M3, "experts n k")
    n, k = b.shape[1:]
    micro = b_scale.dtype in E8M0
    size = MX if micro else BLOCK
    check.that(k % size == 0 and (micro or n % size == 0), f"b is {list(b.shape)}, wanted multiples of {size}")
    check.sizes |= {"columns": k // size, "blocks": n // BLOCK}
    check("a_scale", a_scale, E8M0 if micro else F32, "columns m")
    check("b_scale", b_scale, E8M0 if micro else F32, "experts columns n" if micro else "experts blocks columns")
    rows = a.float() * a_scale.float().T.repeat_interleave(size, 1)
    scales = b_scale.float().mT if micro else b_scale.repeat_interleave(BLOCK, 1)
    return rows, b.float() * scales.repeat_interleave(size, 2)
