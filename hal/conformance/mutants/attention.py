"""Planted bugs in attention and selection."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.conformance.mutants.planted import honest

attend = honest("hal.reference.attention:attend")
select = honest("hal.reference.selection:select")
index_scores = honest("hal.reference.selection:index_scores")

_calls = count()


def ignored_page_stride(
    q: Tensor, window: KVCache, compressed: KVCache | None, *rest: Any, **attributes: Any
) -> tuple[Tensor, Tensor]:
    far = None if compressed is None else _packed(compressed)
    result: tuple[Tensor, Tensor] = attend(q, _packed(window), far, *rest, **attributes)
    return result


def _packed(cache: KVCache) -> KVCache:
    """The pages as if each began where the one before it ends."""
    pages = cache.pages
    strides = torch.empty(pages.shape, device="meta").stride()
    return replace(cache, pages=pages.as_strided(pages.shape, strides, pages.storage_offset()))


def sink_dropped(
    q: Tensor, window: KVCache, compressed: Any, rows: Any, sink: Any, batch: Batch, **attributes: Any
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = attend(q, window, compressed, rows, None, batch, **attributes)
    return result


def window_too_wide(*arguments: Any, window_size: int, **attributes: Any) -> Any:
    return attend(*arguments, window_size=window_size + (window_size > 0), **attributes)


def lse_in_base_two(*arguments: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
    out, lse = attend(*arguments, **attributes)
    return out, lse / math.log(2)


def nan_where_nothing_is_seen(*arguments: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
    out, lse = attend(*arguments, **attributes)
    return torch.where(lse.isinf()[..., None], torch.nan, out), lse


def row_minus_one_read(
    q: Tensor, window: KVCache, compressed: Any, rows: Tensor | None, *rest: Any, **attributes: Any
) -> Any:
    return attend(q, window, compressed, None if rows is None else rows.clamp_min(0), *rest, **attributes)


def zero_times_garbage(q: Tensor, window: KVCache, *rest: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
    out, lse = attend(q, window, *rest, **attributes)
    return out + (0 * window.canonical().sum()).to(out.dtype), lse


def unfinished_entry_seen(
    q: Tensor, weights: Tensor, rope: Any, batch: Batch, cache: KVCache, **attributes: Any
) -> Any:
    early = replace(batch)
    ratio = attributes["ratio"]
    early.derive(("visible", ratio), lambda: batch.positions // ratio + 1)
    return select(q, weights, rope, early, cache, **attributes)


def order_changes(*arguments: Any, **attributes: Any) -> Any:
    rows = select(*arguments, **attributes)
    return rows.sort(dim=-1, descending=True).values if next(_calls) % 2 else rows


def no_relu(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, **attributes: Any) -> Any:
    positive = index_scores(q, weights, batch, cache, **attributes)
    negative = index_scores(-q, weights, batch, cache, **attributes)
    return torch.where(positive.isinf(), positive, positive - negative)
