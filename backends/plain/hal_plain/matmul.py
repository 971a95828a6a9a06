"""Quantised products in plain torch: activations rounded as their quantiser rounds them, weights dequantised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from hal import formats

if TYPE_CHECKING:
    from hal.formats import PackedWeight


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize`: x[tokens, features] -> codes and scales."""
    quantized = formats.quantize(x, activation)
    return quantized.codes, quantized.scales


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: x[tokens, features] -> y[tokens, outputs] in the dtype of `x`; float32 products."""
    return F.linear(formats.simulate(x.float(), activation), weight.dequantize()).to(x.dtype)
