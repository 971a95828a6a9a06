"""How rounding errors travel through the operators' algebra: second moments, in float64.

Each function takes exact operands and returns standard deviations. Errors of different products are independent, so
they add as squares: the envelope of a sum of products is sqrt(sum (a_i b_i)**2), far below the sum of magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.numerics.precision import Precision
from hal.numerics.rounding import accumulation

__all__ = ["SoftmaxSum", "envelope", "index_scores_noise", "matmul_noise", "pool_noise", "softmax_sum"]


def envelope(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(sum_k (a[m, k] b[n, k])**2): [.., m, k], [.., n, k] -> [.., m, n]."""
    return (a.double() ** 2 @ (b.double() ** 2).mT).sqrt()


def matmul_noise(a: Tensor, b: Tensor, total: Tensor, precision: Precision, a_noise: Tensor | None = None) -> Tensor:
    """Noise of total = a @ b.mT with exact b; `a_noise` is the standard deviation of a's own error."""
    noise = precision.sums(a.shape[-1], envelope(a, b), total)
    return noise if a_noise is None else (noise**2 + envelope(a_noise, b) ** 2).sqrt()


@dataclass(frozen=True)
class SoftmaxSum:
    """Attention of one head group: out [.., heads, dim], lse [.., heads], float64, and their noise."""

    out: Tensor
    lse: Tensor
    out_noise: Tensor
    out_one_sided: Tensor
    lse_noise: Tensor


def softmax_sum(
    q: Tensor, rows: Tensor, seen: Tensor, sink: Tensor | None, scale: float, precision: Precision
) -> SoftmaxSum:
    """One softmax over rows that are keys and values at once, `sink` in the denominator only.

    q [tokens, heads, dim], rows [tokens, n, dim], seen bool [tokens, n], sink [heads]. Noise has four sources: the
    rounding of softmax weights, errors of scores (which scale the weights), the weighted sum, the division.
    """
    q, rows = q.double(), torch.where(seen[..., None], rows.double(), 0.0)
    scores = (q @ rows.mT * scale).masked_fill(~seen[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    total = lse if sink is None else torch.logaddexp(lse, sink.double())
    weights = torch.where(seen[:, None], (scores - total[..., None]).exp(), 0.0).nan_to_num(0.0)
    out = weights @ rows

    depth, n = q.shape[-1], rows.shape[1]
    finite = torch.where(seen[:, None], scores, 0.0)
    score_noise = precision.sums(depth, scale * envelope(q, rows), finite)
    largest = finite.abs().amax(-1, keepdim=True)
    score_noise = score_noise + precision.unit * (finite.abs() + largest) + precision.relative("scores") * finite.abs()
    moved = (weights * score_noise) ** 2
    rounded = (weights * precision.relative("weights")) ** 2 + precision.smallest("weights") ** 2
    size = precision.sums(n, (weights**2 @ rows**2).sqrt(), out)
    one_sided = (moved @ rows**2 + moved.sum(-1, keepdim=True) * out**2 + size**2 + (precision.unit * out) ** 2).sqrt()
    out_noise = (rounded @ rows**2 + one_sided**2).sqrt()

    seen_weights = weights * (total - lse).exp()[..., None].nan_to_num(0.0, 0.0)
    lse_noise = ((seen_weights * score_noise) ** 2).sum(-1).sqrt() + precision.sums(
        n, torch.ones_like(lse), torch.ones_like(lse)
    )
    lse_noise = lse_noise + precision.unit * (1 + lse.abs() + largest[..., 0])
    nothing = ~seen.any(-1)[:, None].expand_as(lse)
    return SoftmaxSum(
        out.masked_fill(nothing[..., None], 0.0),
        lse.masked_fill(nothing, torch.inf),
        out_noise.masked_fill(nothing[..., None], 0.0),
        one_sided,
        lse_noise.masked_fill(nothing, 0.0),
    )


def pool_noise(envelope: Tensor, size: Tensor, slots: int, precision: Precision) -> Tensor:
    """Noise of a softmax-weighted sum over `slots` values per channel.

    envelope: sqrt(sum softmax(2 scores) values**2), which is not smaller than sqrt(sum (weights values)**2).
    size: weighted mean of abs(scores): a float32 score errs by its last bit, and its weight by as much.
    """
    relative = precision.unit * (3 + 2 * size) + precision.relative("weights")
    return (relative + precision.sums(slots, torch.ones_like(envelope), torch.ones_like(envelope))) * envelope


def index_scores_noise(
    q: Tensor, keys: Tensor, weights: Tensor, scale: float, precision: Precision, q_noise: Tensor | None = None
) -> Tensor:
    """Noise of sum_h weights[t, h] * scale * relu(q[t, h] . keys[t or 1, e]): [tokens, entries].

    q [tokens, heads, dim], keys [tokens or 1, entries, dim], weights [tokens, heads]. A score that the ReLU cuts off
    keeps the noise of its cut: an honest dot product may cross zero.
    """
    q, keys = q.double(), keys.double()
    dots = q @ keys.mT
    noise = precision.sums(q.shape[-1], envelope(q, keys), dots) ** 2
    if q_noise is not None:
        noise = noise + q_noise.double() ** 2 @ (keys**2).mT
    noise = torch.where(dots > -6 * noise.sqrt(), noise, 0.0)
    dots = dots.relu()
    heads = weights.double()[..., None] * scale
    noise = noise + (dots * (precision.relative("scores") + precision.unit)) ** 2
    size = (heads * dots).square().sum(-2)
    total = (heads * dots).sum(-2).abs()
    depth = accumulation(q.shape[1]) if precision.scores == "float32" else precision.relative("scores") * 2
    return ((heads**2 * noise).sum(-2) + (depth * torch.maximum(size.sqrt(), total)) ** 2).sqrt()
