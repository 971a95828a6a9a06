"""Weights as the matrix unit of A2 and A3 reads them: scales of 19 bits, int4 beside what makes up for its arithmetic.

The unit multiplies int8 rows by int4 in two halves of 4 bits, 16 high + low + 8, without the 8; so it wants 8 times the
weights' sums besides. Source: aclnnGroupedMatmulV5, A8W4; aclnnQuantMatmulV5, K-G.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch_npu
from torch import Tensor

from hal.derived import derived

if TYPE_CHECKING:
    from hal.formats import PackedWeight

__all__ = ["GROUP", "Int4", "cube_scales", "fractions", "int4"]

NZ = 29
GROUP = 256  # features that share a scale
DROPPED = 13  # low bits of a float32 scale that the unit does not read


@dataclass(frozen=True)
class Int4:
    """A weight as the operators take it.

    Attributes:
        codes: int32 [.., features, outputs / 8].
        scales: int64 [.., features / 256, outputs].
        bias: float32 [.., outputs], 8 times the weights' sums.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor


def int4(weight: PackedWeight) -> Int4:
    """A weight of `w4a8_int_256`; its codes are not copied."""
    return derived(weight, ("ascend", "int4"), lambda: _int4(weight))


def _int4(weight: PackedWeight) -> Int4:
    assert weight.scales is not None
    scales = cube_scales(weight.scales)
    read = replace(weight, scales=scales.to(torch.int32).view(torch.float32))
    stack = [read[expert] for expert in range(read.shape[0])] if len(read.shape) == 3 else [read]
    bias = 8 * torch.stack([each.dequantize().sum(-1) for each in stack]).view(weight.shape[:-1])
    return Int4(weight.codes.contiguous().view(torch.int32), scales.transpose(-1, -2).contiguous(), bias)


def fractions(codes: Tensor) -> Tensor:
    """int8 [experts, outputs, features] -> [experts, features, outputs] in FRACTAL_NZ, whatever torch_npu may make."""
    before = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"enable"
    torch.npu.config.allow_internal_format = True
    try:
        return torch_npu.npu_format_cast(codes.transpose(1, 2).contiguous(), NZ)
    finally:
        torch.npu.config.allow_internal_format = before


def cube_scales(scales: Tensor) -> Tensor:
    """int64 like float32 `scales`: in the low half the nearest float32 of those that the unit can tell apart."""
    bits = scales.view(torch.int32).long()
    return (bits + (1 << DROPPED - 1)) >> DROPPED << DROPPED
