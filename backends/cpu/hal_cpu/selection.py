"""The lightning indexer in blocks: some queries against some keys at a time, then the top-k of each query's scores.

At one million tokens a query scores 262,144 entries with every index head; the scores of a few queries and the
dequantised keys of one product are all that is ever in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.formats import hadamard_transform, simulate
from hal.rope import Rope, rotate
from hal_cpu.spans import Span, block_size, spans, working_dtype
from hal_cpu.topk import top_k as best

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

QUERIES = 64  # tokens per block
PRODUCT_FLOATS = 1 << 18  # per-head scores of one product (1 MiB): ReLU and the sum over heads find them in cache
KEYS = 1 << 14  # keys dequantised at a time


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
    rows = torch.full((q.shape[0], top_k), -1, dtype=torch.int32)
    turn = batch.derive(("rope", rope), lambda: rope.cos_sin(batch.positions))
    for span in spans(batch):
        for block in span.blocks(block_size(QUERIES, span.end // ratio)):
            visible = block.visible(ratio, q.device).unsqueeze(1)
            entries = block.end // ratio
            if entries <= top_k:  # everything visible is chosen
                chosen = torch.arange(entries)
            else:
                queries = _prepared(q[block.tokens], *(table[block.tokens] for table in turn), cache, hadamard)
                scores = _scores(queries, weights[block.tokens], block, cache, ratio, scale)
                chosen = best(scores, top_k, ordered=False)
            rows[block.tokens, : min(entries, top_k)] = torch.where(chosen < visible, chosen, -1).int()
    return rows


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: q as the cache's rows are -> scores[tokens, entries], -inf where not visible."""
    work = working_dtype(q, weights)
    most = max((span.end // ratio for span in spans(batch)), default=0)
    scores = torch.full((q.shape[0], most), float("-inf"), dtype=work)
    for span in spans(batch):
        for block in span.blocks(block_size(QUERIES, most)):
            found = _scores(q[block.tokens].to(work), weights[block.tokens], block, cache, ratio, scale)
            scores[block.tokens, : found.shape[1]] = found
    return scores


def _prepared(q: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, hadamard: bool) -> Tensor:
    """Queries as the cache's rows were stored: rotated, transformed, quantised."""
    q = rotate(q, cos, sin)
    if hadamard:
        q = hadamard_transform(q)
    return simulate(q, cache.layout.index_activation).to(working_dtype(q))


def _scores(queries: Tensor, weights: Tensor, block: Span, cache: KVCache, ratio: int, scale: float) -> Tensor:
    """Sum over heads of weight * scale * relu(q . k), [length, entries of the block's request]; -inf if not visible."""
    length, heads, dim = queries.shape
    entries, all_see = block.end // ratio, (block.start + 1) // ratio
    factors = weights.to(queries.dtype).mul(scale).unsqueeze(1)
    flat = queries.reshape(length * heads, dim)
    step = max(256, PRODUCT_FLOATS // (length * heads))
    scores = queries.new_empty(length, entries)
    for low in range(0, entries, KEYS):
        keys = block.read(cache, low, min(low + KEYS, entries), queries.dtype)
        for at in range(0, len(keys), step):
            heads_scores = (flat @ keys[at : at + step].T).relu_().view(length, heads, -1)
            scores[:, low + at : low + at + heads_scores.shape[-1]] = torch.bmm(factors, heads_scores).squeeze(1)
    hidden = torch.arange(all_see, entries) >= block.visible(ratio, queries.device).unsqueeze(1)
    scores[:, all_see:].masked_fill_(hidden, float("-inf"))
    return scores
