"""What every contract means: plain torch, correct in float64, differentiable, written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["working"]


def working(x: Tensor) -> torch.dtype:
    """The dtype a reference computes in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
