"""References of the compressor: hidden states to compressed entries, and rows into caches.

Formulas: DeepSeek-V4 technical report, section 2 (CSA and HCA); the official inference code's `Compressor`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.formats import hadamard_transform
from hal.reference import working
from hal.rope import Rope, rotate

__all__ = ["compress", "compress_pool", "store"]


def compress(
    x: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm: Tensor,
    rope: Rope,
    batch: Batch,
    state: StateCache,
    cache: KVCache,
    *,
    ratio: int,
    overlap: bool,
    hadamard: bool,
    eps: float,
    parts: Any = None,
) -> None:
    """`attn.compress`: compress the batch's hidden states, advance `state`, store the entries completed.

    CSA is `ratio` 4 with overlap, HCA `ratio` 128 without. The projection is taken in float32 whatever the weights'
    dtype; entries are rounded to the model's dtype before their norm, as in the official inference code.

    Args:
        x: [tokens, hidden], the model's dtype.
        wkv, wgate: [width, hidden], `width` is `2 * head_dim` with overlap, else `head_dim`.
        ape: float32 [ratio, width], added to the score of the token at `position % ratio`.
        norm: [head_dim], weight of the RMS norm.
        rope: rotates entry `w` by the first position of its window, `w * ratio`.
        batch: whose tokens these are.
        state: mutated; tails of unfinished windows.
        cache: mutated; entry `w` of a request becomes row `w`.
        ratio, overlap: window length, and whether a window also sees its predecessor's first half of channels.
        hadamard: entries take an orthonormal Hadamard transform before they are stored.
        eps: of the RMS norm.
        parts: `compress_pool` and `store` with their attributes applied; these references by default.
    """
    if parts is None:
        parts = SimpleNamespace(
            compress_pool=lambda *args: compress_pool(*args, ratio=ratio, overlap=overlap),
            store=lambda *args: store(*args, hadamard=hadamard, eps=eps),
        )
    dtype, entries = working(x), batch.entries(ratio)
    kv, score = F.linear(x.to(dtype), wkv.to(dtype)), F.linear(x.to(dtype), wgate.to(dtype))
    pooled = parts.compress_pool(kv, score, ape, batch, state)
    rows = batch.derive(
        ("rows of entries", ratio, cache.layout.block_size, id(cache.block_table)),
        lambda: cache.physical(batch.slots[entries.request], entries.index),
    )
    parts.store(pooled.to(x.dtype), norm, rope, entries.positions, rows, cache)


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: pool projected tokens into entries by a softmax over each window, per channel.

    Entry `w` is emitted by the batch that holds position `w*ratio + ratio-1`. Its softmax runs over `ratio` tokens, or
    with overlap over `2*ratio`: the previous window's first `head_dim` channels and its own last `head_dim`; window 0
    has no previous one. Tokens before the batch come from `state`; a request that starts at position 0 reads none of
    it, so a slot that another request used needs no reset.

    Args:
        kv, score: [tokens, width], float32; `ape` is not in `score` yet.
        ape: float32 [ratio, width].
        batch: whose tokens these are.
        state: mutated; ends up with the last rows' values, and scores with `ape`.

    Returns:
        [entries, head_dim] like `kv`, in the order of `batch.entries(ratio)`; no rows where no window is completed.
    """
    score = score + ape.to(score.dtype)[batch.positions % ratio]
    head_dim = kv.shape[-1] // 2 if overlap else kv.shape[-1]
    pooled = [kv.new_empty(0, head_dim)]
    tokens = torch.cat([kv, score], dim=-1).split(batch.lengths)
    for new, start, slot in zip(tokens, batch.starts, batch.slots, strict=True):
        window, end = start // ratio, start + len(new)
        first = max(window - 1, 0) * ratio if overlap else window * ratio
        kept = torch.arange(first, start, device=kv.device) % state.tensor.shape[1]
        row = torch.cat([state.tensor[slot, kept].to(kv.dtype), new])
        windows = row[: (end // ratio) * ratio - first].unflatten(0, (-1, ratio)) if end // ratio > window else None
        if windows is not None:
            pooled.append(_pool(windows, head_dim, overlap, has_previous=window > 0))
    _keep(batch, state, kv, score)
    return torch.cat(pooled)


def _pool(windows: Tensor, head_dim: int, overlap: bool, has_previous: bool) -> Tensor:
    """Windows [n, ratio, value and score] -> entries. With overlap and `has_previous`, the first window only feeds the
    second."""
    values, scores = windows.chunk(2, dim=-1)
    if overlap:
        if not has_previous:  # nothing before window 0: values that weigh nothing
            values = torch.cat([values.new_zeros(values[:1].shape), values])
            scores = torch.cat([scores.new_full(scores[:1].shape, -torch.inf), scores])
        values = torch.cat([values[:-1, :, :head_dim], values[1:, :, head_dim:]], dim=1)
        scores = torch.cat([scores[:-1, :, :head_dim], scores[1:, :, head_dim:]], dim=1)
    return (scores.softmax(dim=1) * values).sum(dim=1)


def _keep(batch: Batch, state: StateCache, kv: Tensor, score: Tensor) -> None:
    """Store the tokens that later windows may need: the last ones of each request, as many as the state has rows."""
    rows = state.tensor.shape[1]
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True)]
    keep_from = torch.tensor(ends, dtype=torch.int64, device=kv.device) - rows
    last = (batch.positions >= keep_from[batch.request]).nonzero().squeeze(1)
    slots, row = batch.slots[batch.request[last]], batch.positions[last] % rows
    state.tensor[slots, row] = torch.cat([kv, score], dim=-1)[last].to(state.tensor.dtype)


def store(
    values: Tensor,
    norm: Tensor | None,
    rope: Rope,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
    *,
    hadamard: bool,
    eps: float,
) -> None:
    """`attn.store`: RMS norm, RoPE, optional Hadamard, then the layout's own quantiser, into physical rows.

    Each step rounds to the model's dtype, as in the official inference code.

    Args:
        values: [rows, head_dim], the model's dtype.
        norm: [head_dim], or None for values that have their norm already.
        rope: rotates the last `rope.dim` channels.
        positions: int64 [rows].
        slots: int64 [rows], physical rows (`KVCache.physical`); -1 is skipped. No row may be named twice.
        cache: mutated.
    """
    kept = slots >= 0
    values, positions, slots = values[kept], positions[kept], slots[kept]
    if norm is not None:
        values = _rms_norm(values, norm, eps)
    values = rotate(values, *rope.cos_sin(positions))
    cache.write(hadamard_transform(values) if hadamard else values, slots)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(working(x))
    return (weight.to(wide.dtype) * wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
