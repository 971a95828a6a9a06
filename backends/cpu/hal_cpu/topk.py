"""Top-k with ties to the lowest index, which `torch.topk` does not promise."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int, *, ordered: bool = True) -> Tensor:
    """Indices of the k largest of each row of scores[rows, n], int64 [rows, k].

    Best first where `ordered`, equal scores by index. Else in any order, except that a row with fewer than k finite
    scores, the finite ones in front, has them in front in the result.
    """
    values, chosen = torch.topk(scores, k, dim=-1, sorted=False)
    least = values.amin(-1, keepdim=True)
    tied = (scores >= least).sum(-1) > k  # the k-th value occurs again outside the choice
    if tied.any():
        chosen[tied] = _lowest(scores[tied], least[tied], k)
    if ordered and k > 1:
        chosen = chosen.sort(dim=-1).values
        chosen = chosen.gather(-1, scores.gather(-1, chosen).sort(dim=-1, descending=True, stable=True).indices)
    return chosen


def _lowest(scores: Tensor, least: Tensor, k: int) -> Tensor:
    """All above `least`, and of those equal to it the first ones, in ascending order."""
    above, equal = scores > least, scores == least
    wanted = k - above.sum(-1, keepdim=True)
    return (above | (equal & (equal.cumsum(-1) <= wanted))).nonzero()[:, 1].view(-1, k)
