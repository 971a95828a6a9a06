"""Hidden states on their way through the experts: rows sorted by expert, and how to get back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.formats import Quantized

__all__ = ["Dispatched"]


@dataclass(frozen=True, eq=False)
class Dispatched:
    """What `moe.dispatch` hands to `moe.experts` and `moe.combine`.

    Rows of local expert `e` are `rows[starts[e] : starts[e] + counts[e]]`, in any order. Rows that belong to no expert
    are padding: they may hold anything, and nobody reads them. Kernels that need aligned or equally long segments
    dispatch into such a layout; `starts` says so to everyone else.

    Attributes:
        rows: [rows, features], codes of hidden states; values where `scales` is None.
        scales: [rows, blocks], the quantiser's scales, of any strides; None where `activation` is "none".
        activation: name of the quantiser.
        weights: float32 [rows], routing weight of each row.
        counts: int64 [local experts], rows of each expert of this process.
        index: int64 [tokens, top_k], the way back: which returned row a token's slot has, -1 for an unused slot.
            Returned rows are `rows` themselves within one process, and what `route` brings back otherwise.
        tokens, top_k: shape of the routing that was dispatched.
        dtype: the model's dtype, in which experts return their rows.
        starts: int64 [local experts], first row of each expert; None where rows are packed without padding.
        route: what the combine of the same backend needs to send rows back to the processes they came from; None
            within one process. Opaque to everyone else.
    """

    rows: Tensor
    scales: Tensor | None
    activation: str
    weights: Tensor
    counts: Tensor
    index: Tensor
    tokens: int
    top_k: int
    dtype: torch.dtype
    starts: Tensor | None = None
    route: object | None = None

    def offsets(self) -> Tensor:
        """int64 [local experts], first row of each expert."""
        return self.counts.cumsum(0) - self.counts if self.starts is None else self.starts

    def values(self) -> Tensor:
        """[rows, hidden], what the rows stand for: float32, or float64 where the model computes in it."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        if self.scales is None:
            return self.rows.to(wide)
        return Quantized(self.rows, self.scales, self.activation).dequantize(wide)
