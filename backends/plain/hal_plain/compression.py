"""The compressor in plain torch: every completed window gathered at once from the batch's rows and the kept ones."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.formats import hadamard_transform
from hal.rope import Rope, rotate

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache, StateCache


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: kv, score [tokens, width] -> entries[entries, head_dim]; advances `state`."""
    new = torch.cat([kv, score + ape[batch.positions % ratio]], dim=-1)
    kept = state.tensor[batch.slots].flatten(0, 1)
    source, missing = batch.derive(
        ("plain", "windows", ratio, overlap, state.tensor.shape[1]),
        lambda: _sources(batch, ratio, overlap, state.tensor.shape[1]),
    )
    windows = torch.cat([new, kept.to(new.dtype)])[source]
    values, scores = windows.chunk(2, dim=-1)
    if overlap:  # the previous window's first half of channels, this one's last
        half = values.shape[-1] // 2
        values, scores = (
            torch.cat([part[:, :ratio, :half], part[:, ratio:, half:]], dim=1) for part in (values, scores)
        )
    hidden = missing.unsqueeze(-1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=1)
    pooled = (weights * values.masked_fill(hidden, 0.0)).sum(dim=1)
    _keep(new, batch, state)
    return pooled


def _sources(batch: Batch, ratio: int, overlap: bool, rows: int) -> tuple[Tensor, Tensor]:
    """Where every completed window is among the batch's tokens and, behind them, the kept rows; and what is missing.

    int64 and bool [entries, ratio], or [entries, 2 * ratio] with the previous window in front.
    """
    entries = batch.entries(ratio)
    offsets = torch.arange(-ratio if overlap else 0, ratio, device=batch.device)
    positions = entries.positions.unsqueeze(1) + offsets
    starts = torch.tensor(batch.starts, dtype=torch.int64).to(batch.device)[entries.request].unsqueeze(1)
    fresh = batch.cu_seqlens.long()[entries.request].unsqueeze(1) + positions - starts
    kept = batch.tokens + entries.request.unsqueeze(1) * rows + positions.clamp_min(0) % rows
    return fresh.where(positions >= starts, kept), positions < 0


def _keep(new: Tensor, batch: Batch, state: StateCache) -> None:
    """The newest rows of every request; older ones would land on the same places."""
    rows = state.tensor.shape[1]
    token, slot, row = batch.derive(("plain", "tails", rows), lambda: _tails(batch, rows))
    state.tensor[slot, row] = new[token].to(state.tensor.dtype)


def _tails(batch: Batch, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    spans = zip(batch.lengths, accumulate(batch.lengths), strict=True)
    token = [torch.arange(end - min(length, rows), end) for length, end in spans]
    token = torch.cat([torch.empty(0, dtype=torch.int64), *token]).to(batch.device)
    return token, batch.slots[batch.request[token]], batch.positions[token] % rows


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
    """`attn.store`: values[rows, head_dim] normalised, rotated, transformed and written to physical rows `slots`."""
    cache.write(prepared(values, norm, rope, positions, hadamard=hadamard, eps=eps), slots)


def prepared(
    values: Tensor, norm: Tensor | None, rope: Rope, positions: Tensor, *, hadamard: bool, eps: float
) -> Tensor:
    """Rows as a cache's layout is given them: normalised, rotated, transformed; each step rounds to their dtype."""
    rows = rotate(normalised(values, norm, eps), *rope.cos_sin(positions))
    return hadamard_transform(rows) if hadamard else rows


def normalised(values: Tensor, norm: Tensor | None, eps: float) -> Tensor:
    """RMS norm in float32, rounded to the dtype of `values`; `values` themselves without a norm."""
    if norm is None:
        return values
    wide = values.float()
    return (norm.float() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(values.dtype)
