"""Reference of attention: one softmax over window rows and compressed rows of a single shared key-value head.

Formulas: DeepSeek-V4 technical report, section 2; the official inference code's `sparse_attn`. Empty queries and lse
follow FlashMLA.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.reference import working

__all__ = ["attend"]

QUERIES = 64  # at a time: memory stays proportional to what these see


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
    """`attn.attend`: every row is key and value at once; query `p` sees window rows `max(0, p-window_size+1)..p` and

    - the entries listed in `rows`, where given; or
    - the entries `j < (p+1) // ratio`, where `compressed` is given and `ratio > 0`; or
    - nothing more.

    Args:
        q: [tokens, heads, head_dim], rotated, the model's dtype.
        window: rows of single tokens; row `p` of a request is its position `p`. What a query sees must be mapped.
        compressed: compressed entries, or None.
        rows: int32 [tokens, top_k], visible entries of the token's request. -1 anywhere is skipped; an entry counts as
            often as it is listed.
        sink: float32 [heads], a logit that adds `exp(sink)` to the denominator and no value; None for none.
        batch: whose tokens these are.
        scale: factor of every logit.
        window_size: rows of the window, the query's own included; 0 for none.

    Returns:
        out [tokens, heads, head_dim] like `q`, and lse float32 [tokens, heads]: the log of the sum of exponentials,
        natural, without the sink. A query that sees nothing has out 0 and lse +inf.
    """
    dtype = working(q)
    outs, lses = [q.new_empty(0, *q.shape[1:], dtype=dtype)], [q.new_empty(0, q.shape[1], dtype=dtype)]
    for slot, tokens, positions in _blocks(batch):
        seen = [_window_rows(window, slot, positions, window_size, dtype)]
        if compressed is not None and rows is not None:
            seen.append(_listed_rows(compressed, slot, rows[tokens], dtype))
        elif compressed is not None and ratio > 0:
            seen.append(_prefix_rows(compressed, slot, (positions + 1) // ratio, dtype))
        out, lse = _softmax(q[tokens].to(dtype), seen, sink, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs).to(q.dtype), torch.cat(lses)


def _blocks(batch: Batch) -> Iterator[tuple[Tensor, slice, Tensor]]:
    """Some queries of one request at a time: its slot, where they are in the batch, their positions."""
    first = 0
    for length, start, slot in zip(batch.lengths, batch.starts, batch.slots, strict=True):
        for begin in range(0, length, QUERIES):
            end = min(begin + QUERIES, length)
            positions = torch.arange(start + begin, start + end, device=batch.device)
            yield slot, slice(first + begin, first + end), positions
        first += length


Seen = tuple[Tensor, Tensor]
"""Keys [queries or 1, n, head_dim], and which query sees which: bool [queries, n]."""


def _window_rows(cache: KVCache, slot: Tensor, positions: Tensor, size: int, dtype: torch.dtype) -> Seen:
    low, high = max(0, int(positions[0]) - size + 1), int(positions[-1]) + 1
    row = torch.arange(low, high, device=positions.device)
    keys = cache.read(cache.physical(slot.expand(len(row)), row), dtype)
    return keys[None], (row <= positions[:, None]) & (row > positions[:, None] - size)


def _prefix_rows(cache: KVCache, slot: Tensor, visible: Tensor, dtype: torch.dtype) -> Seen:
    row = torch.arange(int(visible[-1]), device=visible.device)
    keys = cache.read(cache.physical(slot.expand(len(row)), row), dtype)
    return keys[None], row < visible[:, None]


def _listed_rows(cache: KVCache, slot: Tensor, rows: Tensor, dtype: torch.dtype) -> Seen:
    flat = rows.flatten()
    keys = cache.read(cache.physical(slot.expand(len(flat)), flat), dtype)
    return keys.unflatten(0, rows.shape), rows >= 0


def _softmax(q: Tensor, seen: list[Seen], sink: Tensor | None, scale: float) -> Seen:
    """q [queries, heads, head_dim] over all rows at once -> out, lse."""
    masks = torch.cat([mask for _, mask in seen], dim=-1)[:, None]
    logits = torch.cat([q @ keys.mT for keys, _ in seen], dim=-1) * scale
    lonely = ~masks.any(-1, keepdim=True)
    # -inf in every place would turn into NaN; a lonely query gets zeros here and no weights below
    logits = logits.masked_fill(~masks, -torch.inf).masked_fill(lonely, 0.0)
    lse = logits.logsumexp(-1, keepdim=True) if logits.shape[-1] else logits.sum(-1, keepdim=True)
    total = lse if sink is None else torch.logaddexp(lse, sink.to(lse.dtype)[:, None])
    weights = (logits - total).exp().masked_fill(~masks, 0.0)
    parts = weights.split([mask.shape[-1] for _, mask in seen], dim=-1)
    out = torch.stack([part @ keys for part, (keys, _) in zip(parts, seen, strict=True)]).sum(0)
    return out, lse.masked_fill(lonely, torch.inf).squeeze(-1)
