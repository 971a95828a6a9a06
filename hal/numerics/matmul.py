"""What the quantised products should return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hal.formats import Quantized, simulate
from hal.formats import quantize as quantize_rows
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


def codes(x: Tensor, activation: str) -> Grid:
    """What exact activations `x` [.., features] should be on the grid of quantiser `activation`, as values."""
    exact = x.double()
    values = quantize_rows(exact, activation).dequantize(torch.float64)
    return Grid(exact, values, quantiser_noise(exact, activation), grid_step(exact, activation))


def quantize(
    reference: Reference, arguments: Sequence[Any], attributes: dict[str, Any], precision: Precision | None
) -> list[Part]:
    """`quant.quantize`: codes, judged as the values they stand for, and scales."""
    (x,) = arguments
    activation = attributes["activation"]
    wanted, scales = reference(x, **attributes)

    def values(outputs: Sequence[Any], _: Sequence[Any]) -> Tensor:
        got = outputs[0].to("cpu")
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"codes {got.dtype} {list(got.shape)}, wanted {wanted.dtype} {list(wanted.shape)}")
        return Quantized(got, scales, activation).dequantize(torch.float64)

    return [Part("codes", values, codes(x, activation)), output(1, "scales", Exact(scales))]


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
