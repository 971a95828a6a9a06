"""Planted bugs in hyper-connections."""

from __future__ import annotations

from torch import Tensor

from hal.conformance.mutants.planted import honest

pre = honest("hal.reference.mhc:pre")
post = honest("hal.reference.mhc:post")


def mixed_untransposed(y: Tensor, streams: Tensor, expand: Tensor, comb: Tensor) -> Tensor:
    out: Tensor = post(y, streams, expand, comb.mT)
    return out


def one_round_too_few(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rounds = max(1, iterations - 1)
    found: tuple[Tensor, Tensor, Tensor] = pre(streams, fn, scale, base, iterations=rounds, norm_eps=norm_eps, eps=eps)
    return found
