"""Quantised products: int8, int4 or exact bfloat16 on A2 and A3, e4m3 with ue8m0 scales of 32 elements on the 950."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch_npu
from torch import Tensor
from torch.nn import functional as F

from hal import formats
from hal.derived import derived
from hal_ascend.cube import GROUP, int4
from hal_ascend.quantization import BLOCKS, quantize_int8, quantize_mx

if TYPE_CHECKING:
    from hal.formats import PackedWeight

MX = 32  # elements that share a scale in the matrix unit


def matmul_int8(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of `w8a8_int8`: x[tokens, features] -> y[tokens, outputs]; one scale per token and channel."""
    assert weight.scales is not None
    if not x.numel():
        return x.new_zeros(len(x), weight.shape[0])
    codes, scales = torch_npu.npu_dynamic_quant(x)
    channel = derived(weight, ("ascend", "channel scales"), weight.scales.flatten)
    return torch_npu.npu_quant_matmul(codes, weight.codes.t(), channel, pertoken_scale=scales, output_dtype=x.dtype)


def matmul_int4(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of `w4a8_int_256`: groups of 256 features are exact, and added in float16."""
    if not x.numel():
        return x.new_zeros(len(x), weight.shape[0])
    codes, scales = quantize_int8(x, activation=activation)
    stored = int4(weight)
    return torch_npu.npu_quant_matmul(
        codes,
        stored.codes,
        stored.scales,
        offset=stored.bias,
        pertoken_scale=scales,
        output_dtype=x.dtype,
        group_sizes=[0, 0, GROUP],
    )


def matmul_mx(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of `mxfp8` and `fp8_block128`: blocks of 128 are four of 32 with one scale, so nothing is lost."""
    if not x.numel():
        return x.new_zeros(len(x), weight.shape[0])
    codes, scales = quantize_mx(x, activation=activation)
    return torch_npu.npu_quant_matmul(
        codes,
        weight.codes.t(),
        derived(weight, ("ascend", "mx scales"), lambda: weight_scales(weight)).transpose(0, 1),
        pertoken_scale=row_scales(scales, x.shape[1], BLOCKS[activation]),
        output_dtype=x.dtype,
        scale_dtype=torch_npu.float8_e8m0fnu,
        pertoken_scale_dtype=torch_npu.float8_e8m0fnu,
        group_sizes=[1, 1, MX],
    )


def matmul_hif8(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of `hif8` weights and plain bfloat16 rows: scales are powers of two, so bfloat16 holds them."""
    assert weight.scales is not None
    if not x.numel():
        return x.new_zeros(len(x), weight.shape[0])
    scales = derived(weight, ("ascend", "channel scales"), lambda: _channels(weight, x.dtype))
    return torch_npu.npu_weight_quant_batchmatmul(x, weight.codes.t(), scales, weight_dtype=torch_npu.hifloat8)


def _channels(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """[1, outputs]"""
    assert weight.scales is not None
    return weight.scales.to(dtype).view(1, -1)


def matmul_bf16(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` without a loss where there is no FP8: codes with ue8m0 scales are exact in bfloat16."""
    return F.linear(formats.simulate(x, activation), weight.dequantize(torch.bfloat16))


def row_scales(scales: Tensor, features: int, block: int) -> Tensor:
    """uint8 [.., rows, features / 64, 2] as the matrix unit reads them: ue8m0 scales [.., rows, blocks] of `block`
    elements, each repeated for every 32 of them."""
    repeated = scales.view(torch.uint8).repeat_interleave(block // MX, -1)
    return repeated[..., : features // MX].unflatten(-1, (-1, 2))


def weight_scales(weight: PackedWeight) -> Tensor:
    """uint8 [(experts,) outputs, features / 64, 2]: a weight's scales, one row of them per output."""
    assert weight.scales is not None
    scales = weight.scales
    if weight.scheme == "fp8_block128":
        scales = scales.view(torch.uint8).repeat_interleave(128, -2)[..., : weight.shape[-2], :].contiguous()
        return row_scales(scales, weight.shape[-1], 128)
    return row_scales(scales, weight.shape[-1], MX)
