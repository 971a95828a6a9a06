"""What a step's calls share over all layers: tables, lengths and schedules, made once per batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

__all__ = ["ends", "fields", "slots", "starts", "table"]


def slots(batch: Batch) -> Tensor:
    """int32 [requests, 1]: the bank of each request's state."""
    return batch.derive(("ascend", "slots"), lambda: batch.slots.int().unsqueeze(1))


def starts(batch: Batch) -> Tensor:
    """int32 [requests]: position of each request's first new token."""
    return batch.derive(("ascend", "starts"), lambda: torch.tensor(batch.starts, dtype=torch.int32).to(batch.device))


def ends(batch: Batch) -> Tensor:
    """int32 [requests]: tokens of each request after this step, before compression."""
    return batch.derive(("ascend", "ends"), lambda: starts(batch) + batch.cu_seqlens.diff())


def table(batch: Batch, cache: KVCache) -> Tensor:
    """int32 [requests, blocks]: pages of each request; 0 where none is mapped, which nobody reads."""
    key = ("ascend", "table", id(cache.block_table))
    return batch.derive(key, lambda: cache.block_table[batch.slots].clamp_min(0))


def fields(cache: KVCache, dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
    """Views [blocks, rows, n] of the named parts of every row, in their own dtypes, sharing memory with the pages."""
    pages, layout = cache.pages, cache.layout
    views = {}
    for field in layout.sizes.fields:
        if field.name in dtypes:
            shape, strides = (len(pages), layout.block_size, field.bytes), (pages.stride(0), field.stride, 1)
            view = pages.as_strided(shape, strides, pages.storage_offset() + field.offset)
            views[field.name] = view.view(dtypes[field.name])
    return views
