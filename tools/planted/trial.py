"""One trial: what an operator should return, what honest kernels return, and what faulty ones do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hal.numerics import Want

Outputs = tuple[Tensor, ...]

DATA = ("normal", "heavy tails", "outlier channels")


@dataclass
class Trial:
    """`clean` is the kernel the faults were planted in; `depth` the length of the sums (FlagGems scales by it).

    `wants` is a function of the outputs where one output decides what another should be (routing weights).
    """

    family: str
    name: str
    data: str
    wants: tuple[Want, ...] | Callable[[Outputs], tuple[Want, ...]]
    depth: int
    clean: Outputs
    honest: Mapping[str, Outputs] = field(default_factory=dict)
    faulty: Mapping[str, Outputs] = field(default_factory=dict)
    fixed: tuple[int, ...] = ()  # outputs that do not grow with the data


def draw(kind: str, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """float32 data: normal; Student's t with 3 degrees of freedom; 1 channel in 100 sixty times larger."""
    x = torch.randn(*shape, generator=rng)
    if kind == "heavy tails":
        return x / torch.randn(3, *shape, generator=rng).square().mean(0).sqrt()
    if kind == "outlier channels":
        large = torch.rand(shape[-1], generator=rng) < 0.01
        return x * torch.where(large, 60.0, 1.0)
    return x


def truncate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Store by cutting bits off: a cast that forgot to round."""
    near = x.to(dtype)
    toward = torch.nextafter(near, torch.zeros_like(near))
    return torch.where(near.double().abs() > x.double().abs(), toward, near)


def cut(x: Tensor, bits: int) -> Tensor:
    """float64 `x` truncated to `bits` bits of significand."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.trunc(mantissa * 2.0**bits), exponent - bits)


def expected(trial: Trial, outputs: Outputs) -> tuple[Want, ...]:
    return trial.wants(outputs) if callable(trial.wants) else trial.wants
