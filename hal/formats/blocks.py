"""Values that share a scale with the block around them: the rule of all activation quantisers and weight schemes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.formats.codecs import ELEMENTS, Element, ceil_ue8m0

__all__ = ["Blocks"]

LEAST_SCALE = 2.0**-126


@dataclass(frozen=True)
class Blocks:
    """An element format and the block that shares a scale.

    The scale of a block is `max(amax, floor) / largest`, in float32; with `power_of_two` the next power of two at or
    above it. Codes are `value / scale` rounded to the element's grid. A block that holds an infinity or NaN has the
    scale NaN, so all of it reads back as NaN. The last block of a dimension may be shorter than the others.

    Attributes:
        element: name in `hal.formats.codecs.ELEMENTS`.
        columns: block length along the last dimension; 0 for the whole dimension.
        rows: block length along the second last dimension.
        power_of_two: scales are rounded up to powers of two (ue8m0).
        floor: least magnitude that a block is scaled by; keeps zero blocks from dividing by zero.
        scale_dtype: what scales are stored in.
        turned: codes stand [.., k, n], packed along n, as matrix units read 4-bit weights.
    """

    element: str
    columns: int
    rows: int = 1
    power_of_two: bool = True
    floor: float = 0.0
    scale_dtype: torch.dtype = torch.float8_e8m0fnu
    turned: bool = False

    @property
    def format(self) -> Element:
        return ELEMENTS[self.element]

    def round(self, x: Tensor) -> Tensor:
        """Values of `x` [.., n, k] as they read back: float32."""
        split = self.split(x)
        scales = self._scales(split)
        return self.join(self.format.round(split / scales).mul_(scales), x)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [.., n, k], turned or not, or half as many bytes, and scales [.., n / rows, k / columns] of float32 `x`
        [.., n, k]."""
        split = self.split(x)
        scales = self._scales(split)
        rounded = self.join(self.format.round(split / scales), x)
        codes = self.format.encode(rounded.mT.contiguous() if self.turned else rounded)
        return codes, scales.squeeze(-1 if self.rows == 1 else (-3, -1)).to(self.scale_dtype)

    def dequantize(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Values [.., n, k]; the product is taken in float32 (float64 where `dtype` is), then rounded to `dtype`."""
        work = torch.float64 if dtype == torch.float64 else torch.float32
        values = self.format.decode(codes).to(work)
        values = values.mT.contiguous() if self.turned else values
        factors = scales.to(work).unsqueeze(-1)
        if self.rows > 1:
            factors = factors.unsqueeze(-3)
        return self.join(self.split(values).mul_(factors), values).to(dtype)

    def _scales(self, split: Tensor) -> Tensor:
        amax = split.abs().amax(dim=-1 if self.rows == 1 else (-3, -1), keepdim=True)
        wanted = amax.clamp_(min=max(self.floor, LEAST_SCALE * self.format.largest))
        if self.power_of_two:
            return ceil_ue8m0(wanted * (1 / self.format.largest)).to(torch.float32)
        return (wanted / self.format.largest).where(wanted.isfinite(), torch.nan)

    def split(self, x: Tensor) -> Tensor:
        """[.., n, k] -> [.., n, blocks, columns], or [.., blocks, rows, blocks, columns] where blocks have rows."""
        columns = self.columns or x.shape[-1]
        across, down = -x.shape[-1] % columns, -x.shape[-2] % self.rows if self.rows > 1 else 0
        if across or down:
            x = F.pad(x, (0, across, 0, down))
        x = x.unflatten(-1, (x.shape[-1] // columns, columns))
        return x.unflatten(-3, (x.shape[-3] // self.rows, self.rows)) if self.rows > 1 else x

    def join(self, split: Tensor, like: Tensor) -> Tensor:
        """The inverse of `split`, cut to the shape of `like`."""
        x = split.flatten(-2)
        if self.rows > 1:
            x = x.flatten(-3, -2)[..., : like.shape[-2], :]
        return x[..., : like.shape[-1]]
