"""Activation quantisers: int8 per token with npu_dynamic_quant, blocks of e4m3 with npu_dynamic_mx_quant on the 950.

Sources: aclnnDynamicQuantV2; aclnnDynamicMxQuantV3, scaleAlg 1, whose maxLowBound is the quantiser's floor.
"""

from __future__ import annotations

import torch
import torch_npu
from torch import Tensor

from hal import formats

__all__ = ["BLOCKS", "in_plain_torch", "quantize_int8", "quantize_mx"]

BLOCKS = {"e4m3_128": 128, "e4m3_64": 64, "e4m3_32": 32}
LEAST = 1e-10  # int8 scale of a row of zeros
FLOOR, ROUNDED_UP = 1e-4, 1  # of a block's largest magnitude; scale_alg
LEAST_EXPONENT = 105  # ue8m0 of FLOOR / 448; the operator gives a block of zeros the exponent 0


def quantize_int8(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize` by "int8_token": x[tokens, features] -> int8 codes, float32 scales[tokens, 1]."""
    if not x.numel():
        return x.to(torch.int8), x.new_full((len(x), 1), LEAST, dtype=torch.float32)
    codes, scales = torch_npu.npu_dynamic_quant(x)
    return codes, scales.where(scales.isfinite(), torch.nan).clamp_min(LEAST).unsqueeze(1)


def in_plain_torch(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize` by any quantiser of `hal.formats`."""
    made = formats.quantize(x, activation)
    return made.codes, made.scales


def quantize_mx(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize` by "e4m3_*": x[tokens, features] -> e4m3 codes, ue8m0 scales[tokens, blocks].

    float32 rows, which the operator takes in blocks of 32 alone, and no rows are quantised in plain torch.
    """
    if not x.numel() or x.dtype == torch.float32:
        return in_plain_torch(x, activation=activation)
    block = BLOCKS[activation]
    codes, pairs = torch_npu.npu_dynamic_mx_quant(
        x, dst_type=torch.float8_e4m3fn, block_size=block, scale_alg=ROUNDED_UP, max_low_bound=FLOOR
    )
    scales = pairs.flatten(-2)[:, : -(-x.shape[1] // block)].clamp_min(LEAST_EXPONENT)
    return codes, scales.view(torch.float8_e8m0fnu)
