"""`attn.select` by torch_mlu_ops: every token is a decode row, so mixed batches need no split and keys stay paged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hal_plain.selection import queries
from hal_plain.steps import most_visible, request_slots
from torch import Tensor
from torch.nn import functional as F

from hal.rope import Rope
from hal_mlu import tmo

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

HEADS = (32, 64)  # what the operator takes; fewer are padded with heads of weight 0
NAMED = 1 << 24  # entries named at a time (64 MiB)


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
    """`attn.select`: q[tokens, index_heads, 128], weights[tokens, index_heads] -> rows[tokens, top_k] int32."""
    chosen = torch.full((len(q), top_k), -1, dtype=torch.int32, device=q.device)
    entries = most_visible(batch, ratio)
    if not entries:
        return chosen
    missing = next(heads for heads in HEADS if heads >= q.shape[1]) - q.shape[1]
    pages = cache.pages.contiguous()
    turned = F.pad(queries(q, rope, batch, cache, hadamard), (0, 0, 0, missing)).to(pages.dtype).contiguous()
    factors = F.pad(weights.float(), (0, missing))
    table = batch.derive(
        ("mlu", "pages of tokens", id(cache.block_table)),
        lambda: cache.block_table[request_slots(batch)].clamp_min(0).contiguous(),
    )
    step = max(1, NAMED // entries)
    for low in range(0, len(q), step):
        at = slice(low, low + step)
        tmo.select_entries(
            turned[at],
            factors[at].contiguous(),
            pages,
            table[at],
            batch.positions[at],
            chosen[at],
            entries=entries,
            top_k=top_k,
            ratio=ratio,
            scale=scale,
        )
    return chosen
