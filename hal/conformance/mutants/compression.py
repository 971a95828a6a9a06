"""Planted bugs in the compressor and in what it stores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.conformance.mutants.planted import honest
from hal.reference import compression

compress_pool = honest("hal.reference.compression:compress_pool")


def stale_slot_read(kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, **attributes: Any) -> Any:
    """A new request continues where the last one in its slot ended."""
    turn = state.tensor.shape[1]
    later = Batch.build(batch.lengths, (start or turn for start in batch.starts), batch.slots.tolist(), batch.device)
    return compress_pool(kv, score, ape, later, state, **attributes)


def short_chunk_forgotten(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Any:
    """Chunks shorter than a window leave no state."""
    before = state.tensor.clone()
    entries = compress_pool(kv, score, ape, batch, state, ratio=ratio, overlap=overlap)
    for length, slot in zip(batch.lengths, batch.slots.tolist(), strict=True):
        if length < ratio:
            state.tensor[slot] = before[slot]
    return entries


def _halves(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """Rotates channel `i` with channel `i + pairs` instead of its neighbour."""
    pairs = cos.shape[-1]
    still, turning = x.split([x.shape[-1] - 2 * pairs, 2 * pairs], dim=-1)
    one, other = turning.float().chunk(2, -1)
    turned = torch.cat([one * cos - other * sin, one * sin + other * cos], -1)
    return torch.cat([still, turned.to(x.dtype)], -1)


rope_in_halves = honest("hal.reference.compression:store", rotate=_halves)


def _rotated_by_index(values: Tensor, norm: Any, rope: Any, positions: Tensor, *rest: Any, **attributes: Any) -> None:
    step = 4 if bool((positions % 128 != 0).any()) else 128
    compression.store(values, norm, rope, positions // step, *rest, **attributes)


rotated_by_entry_number = honest("hal.reference.compression:compress", store=_rotated_by_index)

store = honest("hal.reference.compression:store")


def write_past_the_end(
    values: Tensor, norm: Any, rope: Any, positions: Tensor, slots: Tensor, cache: KVCache, **attributes: Any
) -> None:
    store(values, norm, rope, positions, slots, cache, **attributes)
    pages = cache.pages
    pages.as_strided((8,), (1,), pages.storage_offset() + pages.numel()).zero_()


def skipped_row_written(
    values: Tensor, norm: Any, rope: Any, positions: Tensor, slots: Tensor, cache: KVCache, **attributes: Any
) -> None:
    """-1 counts from the end."""
    last = len(cache.pages) * cache.layout.block_size - 1
    store(values, norm, rope, positions, slots.where(slots >= 0, last), cache, **attributes)
