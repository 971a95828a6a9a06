"""Rows of a tensor of any dtype: torch 2.7 indexes no 8-bit floats, so those are taken as bytes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["take"]


def take(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]` for `rows` of integers or a mask."""
    if x.is_floating_point() and x.element_size() == 1:
        return x.view(torch.uint8)[rows].view(x.dtype)
    return x[rows]
