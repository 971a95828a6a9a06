"""References of `mhc.pre` and `mhc.post`.

Formulas: the official inference code of DeepSeek-V4 (`model.py`: `hc_pre`, `hc_post`; `kernel.py`: `hc_split_sinkhorn`)
and the DeepSeek-V4 technical report, section 2. These run in the model where a chip has no kernel of its own, so they
read nothing on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.reference import working

__all__ = ["post", "pre"]


def pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`mhc.pre`: collapse the streams before a sub-layer.

    Args:
        streams: [tokens, n, hidden], floats.
        fn: [(2+n) n, n hidden], base: [(2+n) n], scale: [3], float32: a projection to pre, post and comb.
        iterations: of Sinkhorn-Knopp; comb ends approximately doubly stochastic, its columns exact up to eps.
        norm_eps: of the weightless RMS norm over all streams' channels.

    Returns:
        y [tokens, hidden] in the dtype of `streams`, post [tokens, n] and comb [tokens, n, n] in float32 (float64 for
        float64). Differentiable. Zero tokens give empty tensors.
    """
    n, full = streams.shape[-2], streams.to(working(streams))
    flat = full.flatten(-2)
    mean = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square() / flat.shape[-1]  # stores no squares
    mixes = F.linear(flat, fn.to(flat.dtype)) * torch.rsqrt(mean + norm_eps)
    parts, bases = mixes.split([n, n, n * n], -1), base.split([n, n, n * n])
    weights, expand, comb = (part * factor + b for part, factor, b in zip(parts, scale, bases, strict=True))
    y = ((torch.sigmoid(weights) + eps).unsqueeze(-2) @ full).squeeze(-2)
    return y.to(streams.dtype), 2 * torch.sigmoid(expand), _sinkhorn(comb.unflatten(-1, (n, n)), iterations, eps)


def post(y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`mhc.post`: `out_k = post_k y + sum_j comb[j, k] stream_j`.

    Args:
        y: [tokens, hidden], the sub-layer's output; streams: [tokens, n, hidden], what entered `mhc.pre`.
        post: [tokens, n], comb: [tokens, n, n]: what `mhc.pre` returned.

    Returns:
        [tokens, n, hidden] in the dtype of `streams`. Differentiable. Zero tokens give an empty tensor.
    """
    work = working(streams)
    mixed = comb.transpose(-1, -2).to(work) @ streams.to(work)
    return mixed.addcmul_(post.unsqueeze(-1).to(work), y.unsqueeze(-2).to(work)).to(streams.dtype)


def _sinkhorn(comb: Tensor, iterations: int, eps: float) -> Tensor:
    """Sinkhorn-Knopp on [tokens, n, n]: rows first, ends on the columns.

    Tokens come last meanwhile: sums over four neighbours would be slow.
    """
    comb = comb.movedim(0, -1).contiguous().softmax(dim=1) + eps
    comb = comb / (comb.sum(dim=0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(dim=1, keepdim=True) + eps)
        comb = comb / (comb.sum(dim=0, keepdim=True) + eps)
    return comb.movedim(-1, 0).contiguous()
