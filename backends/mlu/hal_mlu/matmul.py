"""Quantised products by torch_mlu_ops: int8 times int8 or int4, and bfloat16 where it holds both sides exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal import formats
from hal.derived import derived
from hal_mlu import tmo

if TYPE_CHECKING:
    from hal.formats import PackedWeight

LEAST_SCALE = 1e-10  # of a row of zeros, for which the vendor gives 0


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize` to int8 per token: codes and scales [tokens, 1]."""
    if not x.numel():
        quantized = formats.quantize(x, activation)
        return quantized.codes, quantized.scales
    codes, scales = tmo.int8_rows(x.contiguous())
    return codes, scales.where(scales > 0, LEAST_SCALE).unsqueeze(1)


def matmul_int8(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of int8 rows and an int8 weight: x[tokens, features] -> y[tokens, outputs]."""
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    assert weight.scales is not None
    codes, scales = derived(x, ("mlu", "int8"), lambda: tmo.int8_rows(x.contiguous()))
    return tmo.int8_matmul(codes, scales, weight.codes, weight.scales.squeeze(-1), x.dtype)


def matmul_int4(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of int8 rows and an int4 weight with a scale per group of channels."""
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    codes, scales = derived(x, ("mlu", "int8"), lambda: tmo.int8_rows(x.contiguous()))
    return tmo.operator("scaled_matmul")(
        a=codes,
        b=weight.codes.view(torch.int8),
        a_scale=scales,
        b_scale=weight.scales,
        output_dtype=x.dtype,
        quant_bit_size=4,
        a_quant_bit_size=8,
    )


def matmul_fp8(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` of FP8 blocks as they are stored.

    Activations are quantised by hal.formats: the vendor's scales are no powers of two.
    """
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    quantized = derived(x, ("mlu", activation), lambda: formats.quantize(x, activation))
    return tmo.operator("scaled_matmul")(
        a=quantized.codes,
        b=weight.codes,
        a_scale=quantized.scales.float(),
        b_scale=derived(weight, ("mlu", "float scales"), lambda: scales_of(weight).float()),
        output_dtype=x.dtype,
    )


def scales_of(weight: PackedWeight) -> Tensor:
    """Scales of a scheme that has them."""
    assert weight.scales is not None
    return weight.scales


def matmul_exact(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul` in bfloat16: rounded activations and dequantised weights are exact in it, sums are float32."""
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    values = formats.simulate(x, activation).contiguous()
    plain = weight.codes if weight.codes.dtype == x.dtype else weight.dequantize(x.dtype)
    return tmo.operator("matmul")(a=values, b=plain)
