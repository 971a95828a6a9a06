"""`attn.attend` in plain torch: each query against a list of physical rows, some queries at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal_plain.steps import compressed_rows, window_rows

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

GATHERED = 1 << 26  # floats of gathered rows at a time (256 MiB)


def attend(
    q: Tensor,
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    sink: Tensor | None,
    batch: Batch,
    *,
    scale: float,
    window_size: int,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    """`attn.attend`: q[tokens, heads, head_dim] -> out like `q`, lse[tokens, heads] float32."""
    sources = [(window, window_rows(batch, window, window_size))]
    if compressed is not None and (rows is not None or ratio):
        sources.append((compressed, compressed_rows(batch, compressed, rows, ratio)))
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    width = sum(listed.shape[1] for _, listed in sources)
    step = max(1, GATHERED // max(1, width * q.shape[-1]))
    for low in range(0, len(q), step):
        at = slice(low, low + step)
        keys = torch.cat([_gathered(cache, listed[at]) for cache, listed in sources], dim=1)
        seen = torch.cat([listed[at] >= 0 for _, listed in sources], dim=1).unsqueeze(1)
        out[at], lse[at] = _softmax(q[at].float(), keys, seen, sink, scale)
    return out, lse


def _gathered(cache: KVCache, listed: Tensor) -> Tensor:
    """[queries, n, head_dim] float32 of physical rows [queries, n]; zeros for -1."""
    return cache.read(listed.flatten()).view(*listed.shape, cache.layout.head_dim)


def _softmax(q: Tensor, keys: Tensor, seen: Tensor, sink: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    scores = (torch.bmm(q, keys.mT) * scale).masked_fill(~seen, -torch.inf)
    if not scores.shape[-1]:
        return torch.zeros_like(q), torch.full(q.shape[:2], torch.inf, device=q.device)
    lse = scores.logsumexp(-1, keepdim=True)
    total = lse if sink is None else torch.logaddexp(lse, sink.float()[:, None])
    weights = (scores - total).exp().masked_fill(~seen, 0.0)
    lonely = ~seen.any(-1, keepdim=True)
    return torch.bmm(weights, keys), lse.masked_fill(lonely, torch.inf).squeeze(-1)
