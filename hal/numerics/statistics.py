"""What the judges share: a mean that knows which errors are independent, and the place of the worst one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first", "lean"]

_FEWEST_ROWS = 16  # fewer independent samples say nothing about a bias


def lean(e: Tensor, use: Tensor, reference: Tensor) -> tuple[float, float]:
    """Mean of signed errors `e` where `use` is true, and its z score.

    Errors that share a row are one sample, and rows of equal `reference` are the same one.
    """
    if not e.ndim or not e.numel():
        return 0.0, 0.0
    sums, counts, keys = (
        x.sum(-1).flatten() for x in (torch.where(use, e, 0.0), use.double(), reference.where(use, 0.0))
    )
    keys, order = keys[counts > 0].sort()
    different = torch.ones_like(keys, dtype=torch.bool)
    different[1:] = keys[1:] != keys[:-1]
    sums, counts = sums[counts > 0][order][different], counts[counts > 0][order][different]
    if len(counts) < _FEWEST_ROWS:
        return 0.0, 0.0
    n = float(counts.sum())
    mean = float(sums.sum()) / n
    spread = float((sums - counts * mean).square().sum().sqrt()) / n
    few = 1 + 8 / len(counts)  # Student's tails for few samples
    return mean, mean / max(spread * few, 1e-300)


def first(mask: Tensor) -> tuple[int, ...]:
    """Coordinate of the first true element."""
    flat = int(mask.reshape(-1).int().argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), mask.shape))
