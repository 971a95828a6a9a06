"""Top-k with ties to the lowest index, which `torch.topk` does not promise."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int, *, ordered: bool = True) -> Tensor:
    """Indices of the k largest of each row of scores[rows, n], int64 [rows, k]; best first where `ordered`, else in any order."""
    values, chosen = torch.topk(scores, k, dim=-1, sorted=False)
    tied = (scores >= values.amin(-1, keepdim=True)).sum(-1) > k  # the k-th value occurs again outside the choice
    if tied.any():
        chosen[tied] = scores[tied].sort(dim=-1, descending=True, stable=True).indices[:, :k]
    if ordered and k > 1:  # equal scores within the choice: lowest index first, too
        chosen = chosen.sort(dim=-1).values
        chosen = chosen.gather(-1, scores.gather(-1, chosen).sort(dim=-1, descending=True, stable=True).indices)
    return chosen
