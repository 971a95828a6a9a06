"""What one rounding does: spacing of a number format, its relative error, and what a perturbation becomes after it.

Everything is float64 and elementwise. `u` is the unit roundoff, half the relative spacing: 2**-8 for bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulation", "relative_rounding", "rounded", "storage_noise", "ulp", "unit_roundoff"]

# Standard deviation of one rounding's relative error in units of u: 2/sqrt(12) within a binade, averaged over
# mantissas that are uniform in the logarithm (Benford): 2/sqrt(12) * sqrt(3/(8 ln 2)).
_RELATIVE = 0.425

# A tensor core adds groups of 16 products and may cut its sum toward zero instead of rounding it (H. Jang et al. and
# M. Fasi et al. measured this on every NVIDIA generation), so errors can grow with the number of groups, not its root.
_GROUP = 32


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of `dtype` just above 1."""
    return float(torch.finfo(dtype).eps) / 2


def relative_rounding(dtype: torch.dtype) -> float:
    """Standard deviation of the relative error that one rounding to `dtype` makes."""
    return _RELATIVE * unit_roundoff(dtype)


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of `dtype` at |x|, float64, same shape as `x`.

    Below the smallest normal number the spacing stays finite. float32 and bfloat16 hardware may flush subnormals to
    zero, so for those two the spacing never falls below the smallest normal number.
    """
    info = torch.finfo(dtype)
    magnitude = x.double().abs().clamp(min=float(info.tiny), max=float(info.max))
    exponent = torch.frexp(magnitude).exponent - 1
    spacing = torch.ldexp(torch.full_like(magnitude, float(info.eps)), exponent)
    if dtype in (torch.float32, torch.bfloat16):
        spacing = spacing.clamp_min(float(info.tiny))
    return spacing


def storage_noise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviation of rounding `x` to `dtype`: a uniform error within one spacing."""
    return ulp(x, dtype) / 12**0.5


def accumulation(depth: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative noise of a sum of `depth` products in an accumulator of `dtype`, in any order a device may choose.

    Multiply it by max(envelope, |sum|). It covers truncating accumulators, so it is linear in depth; orders that
    round to nearest stay far below it.
    """
    return unit_roundoff(dtype) * (2 + depth / _GROUP)


def rounded(noise: Tensor, step: Tensor) -> Tensor:
    """Standard deviation after rounding to a grid of spacing `step`, where values differed by `noise` before.

    A small perturbation rarely crosses a midpoint, but then moves the result by a whole step: variance 0.8 noise step.
    A large one adds two independent uniform roundings: noise**2 + step**2 / 6.
    """
    return (noise**2 - step**2 / 6 * torch.expm1(-4.8 * noise / step)).sqrt()
