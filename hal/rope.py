"""Rotary position embedding of DeepSeek-V4: interleaved pairs on the last channels, YaRN on compressed layers.

Frequencies and angles are float32, as in the official inference code, so that every backend rotates by the same angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = ["Rope", "rotate"]


@dataclass(frozen=True)
class Rope:
    """Frequencies of one kind of layer.

    Attributes:
        dim: rotated channels, the last ones of a head; even.
        theta: base of the frequencies.
        factor: how much YaRN stretches the context; 1 is plain RoPE. Cosines and sines are never scaled (no mscale).
        original: context length before stretching.
        beta_fast, beta_slow: rotations over `original` above which a pair keeps its frequency, below which it is
            divided by `factor` (arXiv 2309.00071, section 3.2).
    """

    dim: int
    theta: float
    factor: float = 1.0
    original: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequencies(self) -> Tensor:
        """float32 [dim/2], radians per position, on the host."""
        return _frequencies(self)

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines at `positions` (int64 [n]), both float32 [n, dim/2]."""
        angles = positions.to(torch.float32).unsqueeze(-1) * self.frequencies().to(positions.device)
        return angles.cos(), angles.sin()

    def table(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Cosines then sines of positions `0..length-1`, float32 [length, dim]; kept for the next caller."""
        return _table(self, length, str(torch.device(device)))


@cache
def _frequencies(rope: Rope) -> Tensor:
    frequencies = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    if rope.factor == 1:
        return frequencies

    def pair(rotations: float) -> float:
        """The pair that turns so often within the original context, as a fraction."""
        return rope.dim * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(pair(rope.beta_fast)), 0)
    high = min(math.ceil(pair(rope.beta_slow)), rope.dim - 1)
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


@cache
def _table(rope: Rope, length: int, device: str) -> Tensor:
    return torch.cat(rope.cos_sin(torch.arange(length, device=device)), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """Rotate the pairs `(x[2i], x[2i+1])` of the last channels.

    Args:
        x: [n, ..., channels], any floating dtype; channels before the last `2 * cos.shape[-1]` pass unchanged.
        cos, sin: [n, pairs], from `Rope.cos_sin`.
        inverse: rotate back (multiply by the conjugate).

    Returns:
        A new tensor like `x`; the product is taken in float32, float64 for float64.
    """
    pairs = cos.shape[-1]
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (cos.shape[0], *(1,) * (x.dim() - 2), pairs)
    cos, sin = cos.to(work).view(shape), sin.to(work).view(shape)
    if inverse:
        sin = -sin
    still, turning = x.split([x.shape[-1] - 2 * pairs, 2 * pairs], dim=-1)
    even, odd = turning.to(work).unflatten(-1, (pairs, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], dim=-1)
