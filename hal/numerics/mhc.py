"""What hyper-connections should return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.numerics.arguments import exact
from hal.numerics.expectation import Part, output
from hal.numerics.noise import matmul_noise
from hal.numerics.precision import Precision, declared
from hal.numerics.sums import Sums

__all__ = ["post", "pre"]

Reference = Callable[..., Any]


def pre(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`mhc.pre`: y, post and comb."""
    streams, fn, scale, base = (exact(argument) for argument in arguments)
    precision = precision or declared(arguments[0].dtype)
    y, expand, comb = reference(streams, fn, scale, base, **attributes)
    base_y, base_expand, base_comb = reference(*arguments, **attributes)

    n, flat = streams.shape[-2], streams.flatten(-2)
    product = flat @ fn.mT
    factor = (flat.square().mean(-1, keepdim=True) + attributes["norm_eps"]).rsqrt()
    sizes = [n, n, n * n]
    mixed = [
        part * s + b for part, s, b in zip((product * factor).split(sizes, -1), scale, base.split(sizes), strict=True)
    ]
    # A logit errs by its projection's noise, by the norm's (of a mean of squares: its roundings) and by its own sum.
    noises = [
        s.abs() * part + precision.unit * (3 * (logit - b).abs() + logit.abs())
        for part, logit, s, b in zip(
            (matmul_noise(flat, fn, product, precision) * factor).split(sizes, -1),
            mixed,
            scale,
            base.split(sizes),
            strict=True,
        )
    ]
    weights, weight_noise = _sigmoid(mixed[0], noises[0], precision)
    weight_noise = weight_noise + precision.unit * attributes["eps"]
    weighted = ((weights + attributes["eps"])[..., None] * streams).square().sum(-2).sqrt()
    y_noise = ((weight_noise[..., None] * streams).square().sum(-2) + precision.sums(n, weighted, y) ** 2).sqrt()
    expand_noise = 2 * _sigmoid(mixed[1], noises[1], precision)[1]
    comb_noise = comb * _sinkhorn_noise(mixed[2].unflatten(-1, (n, n)), noises[2].unflatten(-1, (n, n)), precision)
    return [
        output(0, "y", Sums(y, y_noise, base_y.dtype, base_y, y_noise)),
        output(1, "post", Sums(expand, expand_noise, base_expand.dtype, base_expand, expand_noise)),
        output(2, "comb", Sums(comb, comb_noise, base_comb.dtype, base_comb, comb_noise)),
    ]


def _sigmoid(logits: Tensor, noise: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    value = torch.sigmoid(logits)
    return value, value * (1 - value) * noise + precision.unit * value * (1 + logits.abs())


def _sinkhorn_noise(logits: Tensor, noise: Tensor, precision: Precision) -> Tensor:
    """Relative noise of a balanced matrix [.., n, n].

    Balancing divides rows and columns: it takes averages of the logarithms' errors away, and adds none but those of its
    own last divisions. So an element errs as its own logarithm and the averages of its row and its column do.
    """
    own = noise + precision.unit * (2 + logits.abs() + logits.abs().amax(-1, keepdim=True))
    return own + own.amax(-1, keepdim=True) + own.amax(-2, keepdim=True) + 8 * precision.unit


def post(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`mhc.post`."""
    y, streams, expand, comb = (exact(argument) for argument in arguments)
    precision = precision or declared(arguments[1].dtype)
    out, base = reference(y, streams, expand, comb), reference(*arguments)
    squares = comb.mT**2 @ streams**2 + (expand[..., None] * y.unsqueeze(-2)) ** 2
    noise = precision.sums(streams.shape[-2] + 1, squares.sqrt(), out)
    return [output(0, "out", Sums(out, noise, base.dtype, base, noise))]
