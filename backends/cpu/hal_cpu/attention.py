"""The attention family in blocked plain torch.

Queries are taken a few tokens of one request at a time, so no intermediate grows with tokens x tokens or tokens x
entries. All heads of a block share the one K=V head, so they are the rows of one large float32 product; half precision
products are several times slower where the CPU has no such instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal_cpu.softmax import Part, attention, fold_sink, merge
from hal_cpu.spans import Span, block_size, spans, working_dtype

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

QUERIES = 32  # tokens per block: wider wastes more of the window's band, narrower makes the products too small
KEYS = 8192  # keys per product: 16 MiB of float32 rows
GATHERED_FLOATS = 1 << 20  # 4 MiB of gathered rows at a time: they are still in cache when they are multiplied


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
    """`attn.attend`: q[tokens, heads, head_dim] -> out like q, lse[tokens, heads]."""
    tokens, heads, _ = q.shape
    work = working_dtype(q)
    out = torch.empty_like(q)
    lse = q.new_full((tokens, heads), float("inf"), dtype=work)
    for span in spans(batch):
        seen = _Compressed(span, compressed, rows, ratio, work)
        for block in span.blocks(block_size(QUERIES, heads * min(seen.most, KEYS))):
            queries = q[block.tokens].to(work).mul(scale)
            part = _empty(queries)
            if window_size:
                part = _window(block, queries, window, window_size)
            for more in seen.parts(block, queries):
                part = merge(part, more)
            lonely = part.lse == float("-inf")
            part_out = part.out if sink is None else fold_sink(part, sink.to(work))
            out[block.tokens] = part_out
            lse[block.tokens] = part.lse.masked_fill_(lonely, float("inf"))
    return out, lse


def _empty(queries: Tensor) -> Part:
    return Part(torch.zeros_like(queries), queries.new_full(queries.shape[:-1], float("-inf")))


def _shared(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Part:
    """Every query and head of a block against the same keys[n, head_dim]; bias[length, n] is per token."""
    length, heads, head_dim = queries.shape
    scores = (queries.view(length * heads, head_dim) @ keys.T).view(length, heads, -1)
    if bias is not None:
        scores += bias.unsqueeze(1)
    part = attention(scores.view(length * heads, -1), keys)
    return Part(part.out.view_as(queries), part.lse.view(length, heads))


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor | None:
    """An additive bias: -inf where hidden; None if nothing is."""
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf")) if hidden.any() else None


def _window(block: Span, queries: Tensor, cache: KVCache, size: int) -> Part:
    """The sliding window: a band of length + size - 1 keys."""
    low = max(0, block.start - size + 1)
    positions = block.positions(queries.device)
    back = positions[:, None] - torch.arange(low, block.end, device=queries.device)
    keys = block.read(cache, low, block.end, queries.dtype)
    return _shared(queries, keys, _hide((back < 0) | (back >= size), queries.dtype))


class _Compressed:
    """The compressed rows one request's queries see: a visible prefix, listed rows, or none."""

    def __init__(self, span: Span, cache: KVCache | None, rows: Tensor | None, ratio: int, work: torch.dtype) -> None:
        self.span, self.cache, self.ratio, self.work = span, cache, ratio, work
        self.rows = None if rows is None or cache is None else rows[span.tokens].long()
        self.most, self.dense = 0, KEYS
        if self.rows is not None:
            self.most = int(self.rows.amax()) + 1 if self.rows.numel() else 0
            self.dense = min(KEYS, 2 * self.rows.shape[1])  # so few keys that one product beats gathering
        elif cache is not None and ratio:
            self.most = span.end // ratio
        self._kept: Tensor | None = None

    def parts(self, block: Span, queries: Tensor) -> Iterator[Part]:
        """The softmax over this block's compressed rows, part by part."""
        if not self.most:
            return
        if self.rows is None:
            yield from self._prefix(block, queries)
            return
        at = block.start - self.span.start
        rows = self.rows[at : at + block.length]
        high = int(rows.amax()) + 1
        if 0 < high <= self.dense:
            yield _shared(queries, self._keys(0, high), _times(rows, high, queries.dtype))
        elif high:
            yield self._gathered(block, queries, rows)

    def _prefix(self, block: Span, queries: Tensor) -> Iterator[Part]:
        visible = block.visible(self.ratio, queries.device)
        high = block.end // self.ratio
        for low in range(0, high, KEYS):
            stop = min(low + KEYS, high)
            hidden = torch.arange(low, stop, device=queries.device) >= visible[:, None]
            yield _shared(queries, self._keys(low, stop), _hide(hidden, queries.dtype))

    def _gathered(self, block: Span, queries: Tensor, rows: Tensor) -> Part:
        """Each query against its own rows, a few queries at a time."""
        assert self.cache is not None
        part = _empty(queries)
        missing = rows < 0
        physical = block.physical(self.cache, rows.clamp_min(0))  # row 0 was written: some row is listed
        step = max(1, GATHERED_FLOATS // (rows.shape[1] * queries.shape[-1]))
        for low in range(0, block.length, step):
            at = slice(low, low + step)
            keys = self.cache.read(physical[at].flatten(), queries.dtype).unflatten(0, (-1, rows.shape[1]))
            scores = torch.bmm(queries[at], keys.transpose(1, 2))
            if missing[at].any():
                scores.masked_fill_(missing[at].unsqueeze(1), float("-inf"))
            part.out[at], part.lse[at] = attention(scores, keys)
        return part

    def _keys(self, low: int, high: int) -> Tensor:
        """Rows low..high-1; the first of them are read once per request."""
        assert self.cache is not None
        if low:
            return self.span.read(self.cache, low, high, self.work)
        if self._kept is None:
            self._kept = self.span.read(self.cache, 0, min(self.most, self.dense), self.work)
        return self._kept[:high]


def _times(rows: Tensor, high: int, dtype: torch.dtype) -> Tensor:
    """log of how often each of `high` keys is listed per token: -inf for keys that are not."""
    counts = torch.zeros(len(rows), high + 1, dtype=dtype, device=rows.device)
    listed = rows.masked_fill(rows < 0, high)
    return counts.scatter_add_(1, listed, counts.new_ones(()).expand(rows.shape))[:, :high].log_()
