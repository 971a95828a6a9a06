"""Ragged batches and filled caches: requests that start, continue, decode, are empty, and share slots with the past."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.conformance.samples.sample import Draw
from hal.layouts import layout
from hal.rope import Rope


@dataclass(frozen=True)
class Requests:
    """Host side of a batch: new tokens and first position per request."""

    title: str
    lengths: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(start + length for start, length in zip(self.starts, self.lengths, strict=True))

    def entries(self, ratio: int) -> int:
        """Entries that this batch completes."""
        return sum(end // ratio - start // ratio for start, end in zip(self.starts, self.ends, strict=True))

    def batch(self, draw: Draw) -> Batch:
        """The batch, its requests in shuffled slots; one slot more than requests stays unused."""
        slots = draw.permutation(len(self.lengths) + 1)[: len(self.lengths)]
        return Batch.build(self.lengths, self.starts, slots.tolist(), draw.device)


PREFILL = Requests("prefill", (37, 5, 1), (0, 0, 0))
DECODE = Requests("decode", (1, 1, 1), (131, 300, 7))
MIXED = Requests("mixed", (9, 1, 0, 3, 2), (126, 259, 50, 0, 2))
EMPTY = Requests("empty", (), ())
LONG = Requests("long", (3, 1), (4093, 2050))
"""As many entries as V4 selects, and fewer."""
ALL = (PREFILL, DECODE, MIXED, EMPTY)


def filled(
    draw: Draw,
    name: str,
    head_dim: int,
    block: int,
    rows: tuple[int, ...],
    batch: Batch,
    std: float = 1.0,
    room: tuple[int, ...] = (),
) -> KVCache:
    """A cache that holds random rows `0..rows[r]-1` for each request, in shuffled pages, with room for `room[r]`.

    Every byte that no request wrote is garbage that decodes to NaN where the layout can, so that reading it shows.
    """
    slots = len(rows) + 1
    most = max((*rows, *room), default=0)
    blocks_per_slot = max(1, -(-most // block))
    kind = layout(name, head_dim, block)
    pages = kind.allocate(slots * blocks_per_slot + 1, draw.device)
    poison(pages, draw)
    table = draw.permutation(slots * blocks_per_slot + 1)[: slots * blocks_per_slot].view(slots, blocks_per_slot).int()
    cache = KVCache(kind, pages, table)
    for index, count in enumerate(rows):
        if count:
            row = torch.arange(count, device=draw.device)
            cache.write(draw.normal(count, head_dim, std=std), cache.physical(batch.slots[index].expand(count), row))
    return cache


def rope_of(dim: int) -> Rope:
    """The rotation of compressed rows of `dim` channels: of the last 64, or of all that there are."""
    return Rope(min(64, dim), 160000.0, 16.0, 65536)


def poison(pages: Tensor, draw: Draw) -> None:
    """Fill memory with the draw's garbage: where that is NaN, byte pages get 0xFF (NaN in e4m3, e8m0, bf16, fp32)."""
    pages.fill_(draw.garbage if pages.is_floating_point() else 0xFF if draw.garbage != draw.garbage else 0x7E)
