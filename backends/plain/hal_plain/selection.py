"""The lightning indexer in plain torch: products of some queries with all keys of a request, then the best entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.formats import hadamard_transform, simulate
from hal.rope import Rope, rotate
from hal_plain.steps import most_visible

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

SCORED = 1 << 26  # per-head scores at a time (256 MiB)


def queries(q: Tensor, rope: Rope, batch: Batch, cache: KVCache, hadamard: bool) -> Tensor:
    """q[tokens, index_heads, index_dim] as the cache's rows are: rotated, transformed, quantised."""
    q = rotate(q, *batch.derive(("rope", rope), lambda: rope.cos_sin(batch.positions)))
    return simulate(hadamard_transform(q) if hadamard else q, cache.layout.index_activation)


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
) -> Tensor:
    """`attn.select`: q[tokens, index_heads, index_dim], weights[tokens, index_heads] -> rows[tokens, top_k] int32."""
    rows = torch.full((q.shape[0], top_k), -1, dtype=torch.int32, device=q.device)
    turned = queries(q, rope, batch, cache, hadamard)
    visible = batch.visible(ratio).unsqueeze(1)
    for at, scores in _scores(turned, weights, batch, cache, ratio, scale):
        best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
        rows[at, : best.shape[1]] = best.where(best < visible[at], -1).int()
    return rows


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: -> scores[tokens, entries] float32, -inf where a token does not see an entry."""
    width = most_visible(batch, ratio)
    scores = q.new_full((q.shape[0], width), -torch.inf, dtype=torch.float32)
    for at, found in _scores(q, weights, batch, cache, ratio, scale):
        scores[at, : found.shape[1]] = found
    return scores


def _scores(
    q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, ratio: int, scale: float
) -> Iterator[tuple[slice, Tensor]]:
    """Some tokens of one request, and their scores of every entry the last of them sees."""
    visible, first = batch.visible(ratio).unsqueeze(1), 0
    for length, start, slot in zip(batch.lengths, batch.starts, batch.slots, strict=True):
        entries = (start + length) // ratio
        if entries and length:
            keys = cache.read_run(slot, 0, entries)
            step = max(1, SCORED // (entries * q.shape[1]))
            for low in range(0, length, step):
                at = slice(first + low, first + min(low + step, length))
                heads = torch.relu(q[at].float() @ keys.T)
                scores = torch.einsum("the,th->te", heads, weights[at].float() * scale)
                hidden = torch.arange(entries, device=q.device) >= visible[at]
                yield at, scores.masked_fill(hidden, -torch.inf)
        first += length
