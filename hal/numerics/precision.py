"""The precision a contract promises, where the mathematics leaves a choice. A kernel may declare another one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.kernel import Kernel
from hal.numerics.rounding import accumulation, relative_rounding, unit_roundoff

__all__ = ["Precision", "declared"]


@dataclass(frozen=True)
class Precision:
    """dtypes of the intermediate results, by torch's names.

    accumulate: of dot products. "fp8_tensor_core" is what FP8 units of NVIDIA's Hopper generation do: products are
        aligned to the largest and cut to 13 fraction bits, and promoted to float32 at least every 128 products
        (DeepSeek-V3 technical report, section 3.3.2). "float16_256" is what int4 products of Ascend A2 and A3 do: exact
        in groups of 256 products, which are added in float16.
    weights: of softmax weights when they are multiplied with values.
    scores: of attention and index scores.
    hidden: of an expert's gate and up projections before the activation.
    inner: of what enters an expert's second product, before its quantiser. "" is the model's dtype, as promised;
        "float32" leaves that rounding out.
    """

    accumulate: str = "float32"
    weights: str = "float32"
    scores: str = "float32"
    hidden: str = "float32"
    inner: str = ""

    @classmethod
    def of(cls, *kernels: Kernel) -> Precision | None:
        """What kernels of one call declare; None where all keep to their contracts."""
        said = {field: name for kernel in kernels for field, name in kernel.precision}
        return cls(**said) if said else None

    def sums(self, depth: int, envelope: Tensor, total: Tensor) -> Tensor:
        """Noise of sums of `depth` products whose squares add to envelope**2."""
        size = torch.maximum(envelope, total.abs())
        if self.accumulate == "fp8_tensor_core":
            return 2.0**-12 * envelope + accumulation(depth) * size
        if self.accumulate == "float16_256":
            return unit_roundoff(torch.float16) * (2 + depth / 256) * size
        return accumulation(depth, getattr(torch, self.accumulate)) * size

    def relative(self, field: str) -> float:
        """Relative noise of rounding an intermediate to its declared dtype; 0 for what stays in the accumulator."""
        name: str = getattr(self, field)
        return 0.0 if name in ("float32", "float64") else relative_rounding(getattr(torch, name))

    def smallest(self, field: str) -> float:
        """Absolute noise of rounding an intermediate that is at most 1: float16 runs out of small numbers."""
        name: str = getattr(self, field)
        return float(torch.finfo(torch.float16).smallest_normal) * 2.0**-10 / 12**0.5 if name == "float16" else 0.0

    @property
    def unit(self) -> float:
        """Relative noise of elementary functions and scalings: two roundings of the working dtype."""
        return 2 * relative_rounding(torch.float64 if self.accumulate == "float64" else torch.float32)


def declared(dtype: torch.dtype, scheme: str = "") -> Precision:
    """What contracts promise for a model's `dtype` and a weight scheme: float32 sums, softmax weights in the model's
    dtype, everything else in float32 (in float64 where the model is)."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float64:
        return Precision(name, name, name, name)
    accumulate = "fp8_tensor_core" if "fp8" in scheme or "fp4" in scheme else "float32"
    return Precision(accumulate=accumulate, weights=name)
