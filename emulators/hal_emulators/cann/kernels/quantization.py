"""Quantisers (aclnnDynamicQuantV2, aclnnDynamicMxQuantV3): CANN's formulas, codes rounded to nearest even."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.abi import E2M1, FP4_E2M1, Argument
from hal_emulators.cann.calls import kernel

FLOAT, INT8, E4M3, E5M2 = 0, 2, 36, 35
LARGEST = {E4M3: 448.0, E5M2: 57344.0, FP4_E2M1: 6.0}
EXPONENT = {E4M3: 8, E5M2: 15, FP4_E2M1: 2}


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and one scale per row: scale = max|x| / 127; a row of zeros has scale 0 and codes 0."""
    wide = x.float()
    scale = wide.abs().amax(-1) / 127
    codes = (wide / scale.unsqueeze(-1)).nan_to_num(0.0).round().clamp(-128, 127)
    return codes.to(torch.int8), scale


def mx_scales(blocks: Tensor, dtype: int, algorithm: int, lowest: float = 0.0) -> Tensor:
    """ue8m0 of blocks' scales: 0 takes floor(log2 max) less the element's largest exponent (OCP MX), 1 rounds
    max(max, lowest) / largest up to a power of two. Zeros have the exponent 0 all the same, NaN and infinities 255."""
    largest = blocks.abs().amax(-1).float()
    if algorithm == 0 and not lowest:
        exponent = torch.frexp(largest).exponent - 1 - EXPONENT[dtype]
    elif algorithm == 1 and dtype in (E4M3, E5M2) and lowest >= 0:
        mantissa, exponent = torch.frexp(largest.clamp_min(lowest) * (1 / LARGEST[dtype]))
        exponent = exponent - (mantissa == 0.5).int()
    else:
        raise ValueError(f"scale algorithm {algorithm} with a lower bound of {lowest} for aclDataType {dtype}")
    found = exponent.where(largest > 0, -127).clamp(-127, 127) + 127
    return found.where(largest.isfinite(), 255)


@kernel("TTTiTTT", "aclnnDynamicQuantV2")
def dynamic_quant(
    x: Argument,
    smooth: Argument | None,
    groups: Argument | None,
    dtype: int,
    out: Argument,
    scale: Argument,
    offset: Argument | None,
) -> None:
    if dtype != INT8 or smooth is not None or groups is not None:
        raise NotImplementedError("only int8 without smoothing is emulated")
    codes, scales = int8_rows(x.values())
    out.write(codes)
    scale.write(scales)


@kernel("TisiiiddTT", "aclnnDynamicMxQuantV3")
def dynamic_mx_quant(
    x: Argument,
    axis: int,
    rounding: str,
    dtype: int,
    block: int,
    algorithm: int,
    largest: float,
    lowest: float,
    out: Argument,
    scale: Argument,
) -> None:
    if axis not in (-1, len(x.shape) - 1) or rounding != "rint" or largest:
        raise NotImplementedError("only the last axis, rounded to nearest even, is emulated")
    values = x.values().float()
    width = -(-values.shape[-1] // block)
    padded = torch.nn.functional.pad(values, (0, width * block - values.shape[-1])).unflatten(-1, (width, block))
    if block % 32 or not 0 < block <= 1024 or (x.type == FLOAT and block != 32):
        raise ValueError(f"blocks of {block} for aclDataType {x.type}")
    exponent = mx_scales(padded, dtype, algorithm, lowest)
    codes = torch.ldexp(padded, 127 - exponent.unsqueeze(-1)).where(exponent.unsqueeze(-1) < 255, torch.nan)
    codes = codes.flatten(-2)[..., : values.shape[-1]]
    if dtype == FP4_E2M1:
        out.memory.copy_(_packed(codes).flatten())
    else:
        out.write(codes.clamp(-LARGEST[dtype], LARGEST[dtype]))
    bytes_ = torch.nn.functional.pad(exponent.to(torch.uint8), (0, width % 2))
    scale.memory.view(torch.uint8).copy_(bytes_.unflatten(-1, (-1, 2)))


def _packed(values: Tensor) -> Tensor:
    """Nearest e2m1 codes, ties to the even one, two per byte, low half first."""
    grid = torch.tensor(E2M1[:8])
    distance = (values.abs().clamp(max=6.0).unsqueeze(-1) - grid).abs()
    nearest = distance.amin(-1, keepdim=True) == distance
    even = torch.tensor([0, 1] * 4)
    codes = (nearest * (2 - even)).argmax(-1) + 8 * values.signbit()
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
