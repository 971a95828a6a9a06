"""What a step's calls share over all layers: index lists and lengths, made once per batch from host numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

__all__ = ["compressed_rows", "entry_rows", "most_visible", "request_slots", "window_rows"]


def request_slots(batch: Batch) -> Tensor:
    """int64 [tokens]: the slot of each token's request."""
    return batch.derive(("plain", "slots"), lambda: batch.slots[batch.request])


def most_visible(batch: Batch, ratio: int) -> int:
    """The most entries that a token of the batch sees; from host numbers."""
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True) if length]
    return max(ends, default=0) // ratio if ratio else 0


def window_rows(batch: Batch, cache: KVCache, size: int) -> Tensor:
    """int64 [tokens, size]: physical rows of each token's window, oldest first, -1 behind them where it is shorter."""

    def make() -> Tensor:
        first = (batch.positions - size + 1).clamp_min(0)
        rows = first.unsqueeze(1) + torch.arange(size, device=batch.device)
        rows = rows.where(rows <= batch.positions.unsqueeze(1), -1)
        return _physical(batch, cache, rows)

    return batch.derive(("plain", "window rows", size, id(cache.block_table), cache.layout.block_size), make)


def compressed_rows(batch: Batch, cache: KVCache, rows: Tensor | None, ratio: int) -> Tensor:
    """int64 [tokens, n]: physical rows of listed entries, or of every entry a token sees; -1 where there is none."""
    return entry_rows(batch, cache, ratio) if rows is None else _physical(batch, cache, rows)


def entry_rows(batch: Batch, cache: KVCache, ratio: int) -> Tensor:
    """int64 [tokens, most visible]: physical rows of every entry a token sees, in order, then -1."""

    def make() -> Tensor:
        entries = torch.arange(most_visible(batch, ratio), device=batch.device)
        return _physical(batch, cache, entries.where(entries < batch.visible(ratio).unsqueeze(1), -1))

    return batch.derive(("plain", "entries", ratio, id(cache.block_table), cache.layout.block_size), make)


def _physical(batch: Batch, cache: KVCache, rows: Tensor) -> Tensor:
    slots = request_slots(batch).unsqueeze(1).expand(rows.shape)
    return cache.physical(slots.flatten(), rows.flatten()).view(rows.shape)
