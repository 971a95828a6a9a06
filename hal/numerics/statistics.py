"""What the judges share: a mean that knows which errors are independent, and the place of the worst one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first", "lean"]

_FEWEST_ROWS = 16  # fewer independent samples say nothing about a bias


def lean(e: Tensor, use: Tensor) -> tuple[float, float]:
    """Mean and its z score, clustered by rows: errors that share a row are one sample."""
    e = torch.where(use, e, 0.0)
    rows = e.numel() // max(e.shape[-1], 1) if e.ndim else 1
    width = e.shape[-1] if rows >= _FEWEST_ROWS else -(-e.numel() // (2 * _FEWEST_ROWS))  # a few long rows are cut
    pad = -e.numel() % width
    sums = torch.nn.functional.pad(e.reshape(-1), (0, pad)).view(-1, width).sum(1)
    counts = torch.nn.functional.pad(use.reshape(-1).double(), (0, pad)).view(-1, width).sum(1)
    sums, counts = sums[counts > 0], counts[counts > 0]
    clusters = len(counts)
    if clusters < _FEWEST_ROWS:
        return 0.0, 0.0
    n = float(counts.sum())
    mean = float(sums.sum()) / n
    spread = float((sums - counts * mean).square().sum().sqrt()) / n
    few = 1 + 8 / clusters  # Student's tails for few samples
    return mean, mean / max(spread * few, 1e-300)


def first(mask: Tensor) -> tuple[int, ...]:
    """Coordinate of the first true element."""
    flat = int(mask.reshape(-1).int().argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), mask.shape))
