"""What several contracts' launchers share."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache
    from hal.rope import Rope


@lru_cache(maxsize=64)
def frequencies(rope: Rope, device: torch.device) -> Tensor:
    """float32 [pairs], on the device; uploaded once, so that a captured region can use it."""
    return rope.frequencies().to(device)


def capturing(device: torch.device) -> bool:
    """Whether launches are being recorded into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def widest(batch: Batch, cache: KVCache, ratio: int) -> int:
    """Most entries that a token of this batch may see; where launches are recorded, the most that fit the cache."""
    if capturing(batch.device):
        return cache.block_table.shape[1] * cache.layout.block_size
    ends = (start + length for start, length in zip(batch.starts, batch.lengths, strict=True) if length)
    return max(ends, default=0) // ratio
