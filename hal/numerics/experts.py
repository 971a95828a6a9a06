"""What the mixture-of-experts operators should return: routing, grouped products, sums of slots."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.numerics.precision import Precision
from hal.numerics.rounding import accumulation
from hal.numerics.selection import Selection
from hal.numerics.sums import Sums

__all__ = ["router"]


def router(
    logits: Tensor,
    bias: Tensor | None,
    expert_ids: Tensor,
    top_k: int,
    scoring: str,
    scale: float,
    precision: Precision,
) -> tuple[Sums, Selection]:
    """The weights that belong to the experts a kernel chose, and the scores it had to choose them by."""
    z = logits.double()
    if scoring == "softmax":
        a = z.softmax(-1)
        relative = precision.unit * (2 + z.abs() + z.abs().amax(-1, keepdim=True)) + accumulation(z.shape[-1])
    else:
        a = torch.sigmoid(z) if scoring == "sigmoid" else F.softplus(z, threshold=700).sqrt()
        relative = precision.unit * (2 + z.abs())
    key = a if bias is None else a + bias.double()
    selection = Selection(key, ((a * relative) ** 2 + (precision.unit * key) ** 2).sqrt(), top_k)
    ids = expert_ids.long().clamp(0, z.shape[-1] - 1)
    chosen, own = a.gather(-1, ids), relative.gather(-1, ids)
    share = chosen / chosen.sum(-1, keepdim=True)
    weights = share * scale
    common = ((share * own) ** 2).sum(-1, keepdim=True) + (2 * precision.unit) ** 2
    return Sums(weights, weights * (own**2 + common).sqrt(), torch.float32), selection
