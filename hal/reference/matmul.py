"""References of `quant.quantize` and `quant.matmul`.

Formulas: the official inference code of DeepSeek-V4 (`kernel.py`: `act_quant`, `fp8_gemm`, `fp4_gemm`). The product is
taken of the values that codes and scales stand for, so it has no block order of its own: sums in float32, or in float64
for float64 inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from hal import formats
from hal.reference import working

if TYPE_CHECKING:
    from hal.formats import PackedWeight

__all__ = ["matmul", "quantize"]


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize`: codes and scales of activations, bit for bit.

    Args:
        x: [tokens, features], floats; taken as float32.
        activation: name of the quantiser (`hal.formats.ACTIVATIONS`).

    Returns:
        codes and scales as `hal.formats.Quantized` holds them; for "none" `x` itself and [tokens, 0]. A block that
        holds an infinity or NaN has the scale NaN. Zero tokens give empty tensors.
    """
    quantized = formats.quantize(x, activation)
    return quantized.codes, quantized.scales


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: `y = q(x) Wᵀ`, `q` the activation quantiser.

    Args:
        x: [tokens, features], floats.
        weight: [outputs, features] in any scheme.
        activation: name of the quantiser; "none" multiplies `x` as it is.

    Returns:
        [tokens, outputs] in the dtype of `x`. Differentiable in `x`, straight through the quantiser, and in weights of
        plain schemes. Zero tokens give an empty tensor.
    """
    work = working(x)
    return F.linear(formats.simulate(x.to(work), activation), weight.dequantize(work)).to(x.dtype)
