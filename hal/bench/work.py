"""What a call cannot avoid: the bytes that must cross memory once, and the multiply-adds of its mathematics.

Counted from the arguments of a call and what it returned, contract by contract, and from nothing that a kernel does.
Rows of caches count where the call needs them, experts' weights where an expert has rows. Intermediate results count
nothing: a kernel that writes them pays for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.dispatched import Dispatched
from hal.formats import PackedWeight

__all__ = ["Work", "work"]

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Work:
    """Bytes that must be read and written, and floating-point operations (a multiply-add is two)."""

    bytes: int
    flops: int = 0

    def seconds(self, bandwidth: float, flops: float) -> float:
        """The least time on a machine of `bandwidth` bytes and `flops` operations per second."""
        return max(self.bytes / bandwidth, self.flops / flops)


def work(contract: str, arguments: tuple[Any, ...], attributes: Mapping[str, Any], outputs: Any) -> Work:
    """What a call of `contract` with `arguments` that returned `outputs` must do at least."""
    returned = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return _COUNTS[contract](arguments, attributes, _bytes(*returned))


def _bytes(*values: Any) -> int:
    """Bytes of whole tensors, packed weights and dispatched rows."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, PackedWeight):
            total += _bytes(value.codes, value.scales)
        elif isinstance(value, Dispatched):
            total += _bytes(value.rows, value.scales, value.weights, value.counts, value.index)
    return total


def _row(cache: KVCache) -> int:
    return cache.layout.row_bytes


def _attend(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    q, window, compressed, rows, sink, batch = arguments
    size, ratio = attributes["window_size"], attributes["ratio"]
    spans = list(zip(batch.starts, batch.lengths, strict=True))
    near = sum(length + min(start, size - 1) for start, length in spans if length)
    seen = int((batch.positions + 1).clamp(max=size).sum())
    moved = _bytes(q, sink) + out + near * _row(window)
    if rows is not None:
        used = rows >= 0
        chosen = torch.stack([batch.request.unsqueeze(1).expand_as(rows)[used].long(), rows[used].long()])
        moved += _bytes(rows) + chosen.unique(dim=1).shape[1] * _row(compressed)
        seen += int(used.sum())
    elif compressed is not None:
        moved += _entries(batch, ratio) * _row(compressed)
        seen += int(batch.visible(ratio).sum())
    return Work(moved, 4 * q.shape[1] * q.shape[2] * seen)


def _entries(batch: Batch, ratio: int) -> int:
    """Entries that the requests of a batch see, each once."""
    return sum((start + length) // ratio for start, length in zip(batch.starts, batch.lengths, strict=True) if length)


def _select(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    """A token that sees no more than it may choose needs no scores."""
    q, weights, _rope, batch, cache = arguments
    visible = batch.visible(attributes["ratio"])
    scored = visible > attributes["top_k"]
    return _scored(q[scored], weights[scored], visible[scored], batch.request[scored], cache, out)


def _index_scores(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    """The query of a token that sees nothing needs no reading."""
    q, weights, batch, cache = arguments
    visible = batch.visible(attributes["ratio"])
    scored = visible > 0
    return _scored(q[scored], weights[scored], visible[scored], batch.request[scored], cache, out)


def _scored(q: Tensor, weights: Tensor, visible: Tensor, request: Tensor, cache: KVCache, out: int) -> Work:
    """Every query's heads meet the entries that it sees; a request's entries are read once."""
    entries = sum(int(visible[request == number].max()) for number in request.unique())
    moved = _bytes(q, weights) + entries * _row(cache) + out
    return Work(moved, 2 * q.shape[1] * q.shape[2] * int(visible.sum()))


def _state(batch: Batch, ratio: int, overlap: bool, width: int) -> int:
    """Bytes of a compressor's state that must be read for the windows completed and written for those left open.

    With overlap, the last complete window is kept whole; the next one reads half of its channels.
    """
    rows = 0.0
    for start, length in zip(batch.starts, batch.lengths, strict=True):
        end, part = start + length, 0.5 if overlap else 1.0
        if length and end // ratio > start // ratio:
            rows += part * (start % ratio) + (part * ratio if overlap and start >= ratio else 0)
        written = min(length, end % ratio)
        rows += written + (min(length - written, ratio) if overlap and end >= ratio else 0)
    return int(rows * 2 * width) * FLOAT


def _ape(ape: Tensor, batch: Batch) -> int:
    """Bytes of the rows of `ape` that the batch's positions meet."""
    return len((batch.positions % len(ape)).unique()) * _bytes(ape) // len(ape)


def _compress(arguments: tuple[Any, ...], attributes: Mapping[str, Any], _: int) -> Work:
    x, wkv, wgate, ape, norm, _rope, batch, _, cache = arguments
    ratio, width = attributes["ratio"], len(wkv)
    moved = _bytes(x, wkv, wgate, norm) + _ape(ape, batch) + _state(batch, ratio, attributes["overlap"], width)
    moved += len(batch.entries(ratio).index) * _row(cache)
    return Work(moved, 4 * x.shape[0] * x.shape[1] * width)


def _compress_pool(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    kv, score, ape, batch, _ = arguments
    state = _state(batch, attributes["ratio"], attributes["overlap"], kv.shape[1])
    return Work(_bytes(kv, score) + _ape(ape, batch) + state + out)


def _store(arguments: tuple[Any, ...], _: Mapping[str, Any], __: int) -> Work:
    values, norm, _rope, positions, slots, cache = arguments
    kept = int((slots >= 0).sum())
    return Work(
        kept * (values.shape[1] * values.element_size() + positions.element_size() + _row(cache)) + _bytes(slots, norm)
    )


def _route(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    logits, bias, token_ids, table = arguments
    listed = 0 if table is None else len(logits) * attributes["top_k"] * table.element_size()
    return Work(_bytes(logits, bias, token_ids) + listed + out)


def _used(counts: Tensor, *weights: PackedWeight) -> int:
    """Bytes of the weights of experts that have rows."""
    return int((counts > 0).sum()) * _bytes(*weights) // len(counts)


def _products(rows: int, *weights: PackedWeight) -> int:
    return sum(2 * rows * weight.shape[-1] * weight.shape[-2] for weight in weights)


def _experts(arguments: tuple[Any, ...], _: Mapping[str, Any], out: int) -> Work:
    sent, w13, w2 = arguments
    rows = int(sent.counts.sum())
    return Work(
        _bytes(sent.rows, sent.scales, sent.weights) + _used(sent.counts, w13, w2) + out, _products(rows, w13, w2)
    )


def _combine(arguments: tuple[Any, ...], _: Mapping[str, Any], out: int) -> Work:
    rows, sent, residual = arguments
    kept = int((sent.index >= 0).sum())
    return Work(kept * rows.shape[1] * rows.element_size() + _bytes(sent.index, residual) + out)


def _ffn(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    x, ids, weights, w13, w2, residual, _group = arguments
    chosen = ids[ids >= 0].long()
    counts = torch.bincount(chosen, minlength=w13.shape[0])
    moved = _bytes(x, ids, weights, residual) + _used(counts, w13, w2) + out
    return Work(moved, _products(len(chosen), w13, w2))


def _whole(arguments: tuple[Any, ...], _: Mapping[str, Any], out: int) -> Work:
    """Every argument once."""
    return Work(_bytes(*arguments) + out)


def _mhc_pre(arguments: tuple[Any, ...], attributes: Mapping[str, Any], out: int) -> Work:
    streams, fn, _, _ = arguments
    return Work(_bytes(*arguments) + out, 2 * len(streams) * fn.numel() + 4 * streams.numel())


def _mhc_post(arguments: tuple[Any, ...], _: Mapping[str, Any], out: int) -> Work:
    _, streams, _, comb = arguments
    return Work(_bytes(*arguments) + out, 2 * streams.numel() * (comb.shape[-1] + 1))


def _matmul(arguments: tuple[Any, ...], _: Mapping[str, Any], out: int) -> Work:
    x, weight = arguments
    return Work(_bytes(x, weight) + out, _products(len(x), weight))


_COUNTS: dict[str, Callable[[tuple[Any, ...], Mapping[str, Any], int], Work]] = {
    "attn.attend": _attend,
    "attn.select": _select,
    "attn.index_scores": _index_scores,
    "attn.compress": _compress,
    "attn.compress_pool": _compress_pool,
    "attn.store": _store,
    "moe.route": _route,
    "moe.dispatch": lambda arguments, _, out: Work(_bytes(*arguments[:3]) + out),
    "moe.experts": _experts,
    "moe.combine": _combine,
    "moe.ffn": _ffn,
    "quant.quantize": _whole,
    "quant.matmul": _matmul,
    "mhc.pre": _mhc_pre,
    "mhc.post": _mhc_post,
}
