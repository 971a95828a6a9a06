"""Spacing of the activation quantisers' grids, for the noise model only."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.numerics.precision import Precision
from hal.numerics.rounding import relative_rounding, ulp

__all__ = ["grid_step", "quantiser_noise", "row_noise"]

_E2M1_SPACING = 0.5  # below 2; it doubles with every binade above


def grid_step(values: Tensor, activation: str) -> Tensor:
    """Distance of neighbouring grid points of quantiser `activation` at each of values [.., features], float64."""
    x = values.double()
    if activation == "int8_token":
        return (x.abs().amax(-1, keepdim=True) / 127).expand_as(x)
    kind, width = activation.split("_")
    block, features = int(width), x.shape[-1]
    x = torch.nn.functional.pad(x, (0, -features % block))
    amax = x.unflatten(-1, (-1, block)).abs().amax(-1, keepdim=True).clamp_min(1e-30)
    largest = 448.0 if kind == "e4m3" else 6.0
    scale = torch.exp2(torch.ceil(torch.log2(amax / largest))).expand(*amax.shape[:-1], block).flatten(-2)
    inside = (x / scale).abs().clamp_max(largest)
    if kind == "e4m3":
        spacing = ulp(inside, torch.float8_e4m3fn)
    else:
        spacing = _E2M1_SPACING * torch.exp2(torch.floor(torch.log2(inside.clamp_min(1.0))))
    return (spacing * scale)[..., :features]


def quantiser_noise(codes: Tensor, activation: str) -> Tensor:
    """Noise of exact activations in units of their scale: none where scales are powers of two, two float32 roundings
    (of the scale's inverse and of the product) elsewhere."""
    relative = 2 * relative_rounding(torch.float32) if activation == "int8_token" else 0.0
    return relative * codes.double().abs()


def row_noise(rows: Tensor, rope_dim: int, hadamard: bool, dtype: torch.dtype, precision: Precision) -> Tensor:
    """Noise of cache rows [n, dim] before their codes: a kernel may store the norm's result and the rotated row in
    `dtype`, or neither. A rotation mixes the errors of a pair, a Hadamard transform those of the whole row."""
    size = rows.abs()
    if rope_dim:
        pairs = rows[..., -rope_dim:].unflatten(-1, (-1, 2)).square().mean(-1, keepdim=True).sqrt()
        size = torch.cat([size[..., :-rope_dim], pairs.expand(*pairs.shape[:-1], 2).flatten(-2)], -1)
    if hadamard:
        size = rows.square().mean(-1, keepdim=True).sqrt().expand_as(rows)
    size = (size**2 + rows**2).sqrt()
    return relative_rounding(dtype) * size + precision.sums(rows.shape[-1], size, size)
