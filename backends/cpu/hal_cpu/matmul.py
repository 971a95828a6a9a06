"""Quantised products in float32: activations as their quantiser rounds them, weights dequantised some rows at a time.

Plain CPUs have neither FP8 nor FP4 units, and their half precision products are slower than float32 ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal import formats
from hal_cpu.spans import working_dtype
from hal_cpu.weights import WEIGHTS

if TYPE_CHECKING:
    from hal.formats import PackedWeight


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize`: x[tokens, features] -> codes and scales."""
    quantized = formats.quantize(x, activation)
    return quantized.codes, quantized.scales


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: x[tokens, features] -> y[tokens, outputs] in the dtype of `x`."""
    rounded = formats.simulate(x.to(working_dtype(x)), activation)
    return multiply(rounded, weight).to(x.dtype)


def multiply(x: Tensor, weight: PackedWeight, expert: int | None = None) -> Tensor:
    """x[rows, features] times the weight, or one expert of a stack, transposed; in the dtype of `x`."""
    parts = [x @ rows.T for rows in WEIGHTS.matrices(weight, x.dtype, expert)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
