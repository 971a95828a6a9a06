"""One request at a time, some queries at a time: how the blocked kernels walk a packed batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

BLOCK_FLOATS = 1 << 22
"""Floats a block of scores may hold (16 MiB): the kernels' working memory, whatever the context."""


class Span(NamedTuple):
    """Some new tokens of one request: packed rows `first..first+length-1` at positions `start..start+length-1`."""

    slot: Tensor
    first: int
    length: int
    start: int

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.length

    @property
    def tokens(self) -> slice:
        """The span's rows in the packed batch."""
        return slice(self.first, self.first + self.length)

    def blocks(self, size: int) -> Iterator[Span]:
        """The span cut into pieces of at most `size` tokens."""
        for at in range(0, self.length, size):
            yield Span(self.slot, self.first + at, min(size, self.length - at), self.start + at)

    def positions(self, device: torch.device) -> Tensor:
        """int64 [length]."""
        return torch.arange(self.start, self.end, device=device)

    def visible(self, ratio: int, device: torch.device) -> Tensor:
        """Entries each token sees, int64 [length]."""
        return torch.div(self.positions(device) + 1, ratio, rounding_mode="floor")

    def read(self, cache: KVCache, low: int, high: int, dtype: torch.dtype) -> Tensor:
        """Rows `low..high-1` of the request, dequantised, [high - low, head_dim]."""
        return cache.read_run(self.slot, low, high, dtype)

    def physical(self, cache: KVCache, rows: Tensor) -> Tensor:
        """Physical rows of rows of the request, int64 like `rows`."""
        flat = rows.reshape(-1)
        return cache.physical(self.slot.expand(len(flat)), flat).view(rows.shape)


def spans(batch: Batch) -> Iterator[Span]:
    """The batch's requests that bring at least one token."""
    first = 0
    for request, (length, start) in enumerate(zip(batch.lengths, batch.starts, strict=True)):
        if length:
            yield Span(batch.slots[request], first, length, start)
        first += length


def block_size(most: int, floats_per_token: int) -> int:
    """Tokens per block: `most`, or fewer so that a block's scores stay within `BLOCK_FLOATS`."""
    return max(1, min(most, BLOCK_FLOATS // max(1, floats_per_token)))


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any input is, else float32: half precision GEMMs are several times slower on plain CPUs."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
