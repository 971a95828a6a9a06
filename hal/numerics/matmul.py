"""What the quantised products should return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.formats import Quantized, simulate
from hal.numerics.arguments import exact
from hal.numerics.codes import Exact, Grid
from hal.numerics.expectation import Part, output
from hal.numerics.noise import matmul_noise
from hal.numerics.precision import Precision, declared
from hal.numerics.quantisers import grid_step, quantiser_noise
from hal.numerics.rounding import rounded
from hal.numerics.sums import Sums

__all__ = ["activation_noise", "codes", "matmul", "quantize"]

Reference = Callable[..., Any]


def activation_noise(x: Tensor, activation: str) -> Tensor | None:
    """Noise of what an honest quantiser makes of exact activations, in their units; None where it has no freedom."""
    if activation != "int8_token":
        return None
    step = grid_step(x, activation)
    return rounded(quantiser_noise(x, activation), step)


def codes(x: Tensor, got: Quantized) -> tuple[Tensor, Grid]:
    """Decoded values of `got`, and what exact activations `x` [.., features] should be on the quantiser's grid."""
    exact = x.double()
    rounded_x = simulate(exact, got.name).double()
    want = Grid(exact, rounded_x, quantiser_noise(exact, got.name), grid_step(exact, got.name))
    return got.dequantize(torch.float64), want


def quantize(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`quant.quantize`: codes and scales."""
    (x,) = arguments
    activation = attributes["activation"]
    _, scales = reference(x, **attributes)

    def decoded(outputs: Sequence[Any], _: Sequence[Any]) -> Tensor:
        found: Tensor = codes(x, Quantized(outputs[0].to("cpu"), scales, activation))[0]
        return found

    want = codes(x, Quantized(*reference(x, **attributes), activation))[1]
    return [Part("codes", decoded, want), output(1, "scales", Exact(scales))]


def matmul(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`quant.matmul`."""
    x, weight = arguments
    activation = attributes["activation"]
    precision = precision or declared(x.dtype, weight.scheme)
    a, b = simulate(x.double(), activation), weight.dequantize(torch.float64)
    total = reference(x.double(), exact(weight), **attributes)
    base = reference(x, weight, **attributes)
    noise = matmul_noise(a, b, total, precision, activation_noise(x, activation))
    return [output(0, "y", Sums(total, noise, base.dtype, base, matmul_noise(a, b, total, precision)))]
