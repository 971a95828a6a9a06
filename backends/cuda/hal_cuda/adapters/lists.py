"""Lists of physical rows (page * block_size + offset), which is how the libraries address pages, and the pages.

int32 [tokens, width], `-1` where there is no row, as wide as a multiple of what the library wants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from hal_triton.common import widest
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from hal.batch import Batch
    from hal.cache import KVCache

__all__ = [
    "entries",
    "per_table",
    "records",
    "token_slots",
    "window_rows",
]

Made = TypeVar("Made")


def per_table(batch: Batch, cache: KVCache, key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()`, once per step and block table: layers that share a table share it too."""
    table = cache.block_table
    return batch.derive((key, id(table)), lambda: (make(), table))[0]


def token_slots(batch: Batch) -> Tensor:
    """int64 [tokens]: slot of each token's request."""
    return batch.derive(("cuda", "token slots"), lambda: batch.slots[batch.request])


def window_rows(batch: Batch, cache: KVCache, size: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Rows `max(0, p - size + 1)..p` of each token, oldest first, and int32 [tokens], how many."""

    def make() -> tuple[Tensor, Tensor]:
        lengths = (batch.positions + 1).clamp(max=size)
        first = batch.positions + 1 - lengths
        return _from(batch, cache, first, lengths, size, multiple)

    return per_table(batch, cache, ("cuda", "window rows", size, multiple), make)


def entries(
    batch: Batch, cache: KVCache | None, rows: Tensor | None, ratio: int, multiple: int, selected: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Compressed rows that each token attends to, and int32 [tokens], how many.

    Those that `rows` [tokens, top_k] lists, all that it sees where there is no list, None where there are no entries.
    How many is None for lists with -1 anywhere: only those that `attn.select` returns (`selected`) can be counted.
    """
    if cache is None or (rows is None and not ratio):
        return None, None
    if rows is None:
        return per_table(
            batch, cache, ("cuda", "visible rows", ratio, multiple), lambda: _seen(batch, cache, ratio, multiple)
        )
    listed = _padded(cache.physical(token_slots(batch)[:, None], rows), multiple)
    top_k = rows.shape[1]
    if not selected:
        return listed, None
    return listed, batch.derive(("cuda", "selected", ratio, top_k), lambda: batch.visible(ratio).clamp(max=top_k).int())


def _seen(batch: Batch, cache: KVCache, ratio: int, multiple: int) -> tuple[Tensor, Tensor]:
    visible = batch.visible(ratio)
    return _from(batch, cache, torch.zeros_like(visible), visible, widest(batch, cache, ratio), multiple)


def records(cache: KVCache) -> Tensor:
    """Pages as [blocks, rows, 1, bytes of a row], sharing memory; what stands behind a page's rows is in its stride."""
    pages, (rows, width) = cache.pages, (cache.layout.block_size, cache.layout.row_bytes)
    return pages.as_strided((len(pages), rows, 1, width), (pages.stride(0), width, width, 1), pages.storage_offset())


def _from(
    batch: Batch, cache: KVCache, first: Tensor, lengths: Tensor, width: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """`lengths` rows from `first` on, each [tokens]."""
    place = torch.arange(width, device=first.device)
    rows = torch.where(place < lengths[:, None], first[:, None] + place, -1)
    return _padded(cache.physical(token_slots(batch)[:, None], rows), multiple), lengths.int()


def _padded(rows: Tensor, multiple: int) -> Tensor:
    missing = multiple if not rows.shape[1] else -rows.shape[1] % multiple
    return F.pad(rows.int(), (0, missing), value=-1)
