"""References of the lightning indexer: which compressed entries a token attends to.

Formulas: DeepSeek-V4 technical report, section 2 (lightning indexer); the official inference code's `Indexer`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.formats import hadamard_transform, simulate
from hal.reference import working
from hal.rope import Rope, rotate

__all__ = ["index_scores", "select"]


def select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    *,
    top_k: int,
    ratio: int,
    hadamard: bool,
    scale: float,
    parts: Any = None,
) -> Tensor:
    """`attn.select`: the `top_k` best-scored visible entries of each token.

    `q` is rotated at its position, optionally Hadamard transformed, and quantised as `cache`'s rows are
    (`cache.layout.index_activation`). The token at position `p` sees entries `j < (p+1) // ratio` of its request.

    Args:
        q: [tokens, index_heads, index_dim], projected, the model's dtype.
        weights: [tokens, index_heads], may be negative.
        rope: of compressed layers.
        batch: whose tokens these are.
        cache: index rows; row `j` of a request is its entry `j`.
        top_k: entries to choose; where fewer are visible, all of them are chosen.
        scale: factor of every score.
        parts: `index_scores` with its attributes applied; this reference by default.

    Returns:
        int32 [tokens, top_k], entries of the token's request, the chosen ones first, then -1. Of equal scores the
        lowest entry wins. The order among chosen entries is free; here it is by falling score.
    """
    if parts is None:
        parts = SimpleNamespace(index_scores=lambda *args: index_scores(*args, ratio=ratio, scale=scale))
    cos, sin = batch.derive(("rope", rope), lambda: rope.cos_sin(batch.positions))
    q = rotate(q, cos, sin)
    if hadamard:
        q = hadamard_transform(q)
    scores: Tensor = parts.index_scores(simulate(q, cache.layout.index_activation), weights, batch, cache)
    order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    rows = order.new_full((batch.tokens, top_k), -1, dtype=torch.int32)
    rows[:, : order.shape[1]] = torch.where(order < batch.visible(ratio)[:, None], order, -1).to(torch.int32)
    return rows


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: `sum over heads of weight * scale * relu(q . k)` of every visible entry.

    Args:
        q: [tokens, index_heads, index_dim], already as the cache's rows are: rotated, transformed, quantised.
        weights: [tokens, index_heads].

    Returns:
        float32 [tokens, entries], `entries` the most that any token of the batch sees; -inf where a token does not see
        an entry.
    """
    dtype = working(q)
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True) if length]
    columns = torch.arange(max(ends, default=0) // ratio, device=q.device)
    scores = [q.new_empty(0, len(columns), dtype=dtype)]
    for request, (queries, factors) in enumerate(
        zip(q.to(dtype).split(batch.lengths), (weights.to(dtype) * scale).split(batch.lengths), strict=True)
    ):
        entries = columns[: (batch.starts[request] + len(queries)) // ratio]
        keys = cache.read(cache.physical(batch.slots[request].expand(len(entries)), entries), dtype)
        total = queries.new_zeros(len(queries), len(columns))
        for head in range(q.shape[1]):  # one head at a time: never tokens x entries x heads
            found = factors[:, head, None] * torch.relu(queries[:, head] @ keys.T)
            total = total + torch.nn.functional.pad(found, (0, len(columns) - len(entries)))
        scores.append(total)
    return torch.cat(scores).masked_fill(columns >= batch.visible(ratio)[:, None], -torch.inf)
