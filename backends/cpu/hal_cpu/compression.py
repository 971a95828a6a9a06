"""The compressor: hidden states to compressed entries, with the tail of an unfinished window kept per request.

Entries of a batch are pooled together, whatever requests they belong to: a row a window needs is either among the
batch's new rows or in its request's state. Long batches advance in pieces, as chunked prefill would.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.batch import Batch
from hal.formats import hadamard_transform
from hal.rope import Rope, rotate
from hal_cpu.spans import working_dtype

if TYPE_CHECKING:
    from hal.cache import KVCache, StateCache

TOKENS = 4096  # tokens projected at a time
ROWS = 4096  # rows normalised and stored at a time


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
) -> None:
    """`attn.compress`: x[tokens, hidden]; advances `state` and writes the entries the batch completes."""
    work = working_dtype(x)
    to_value, to_score = wkv.to(work).T, wgate.to(work).T
    first = 0
    for piece in _pieces(batch):
        rows = x[first : first + piece.tokens].to(work)
        first += piece.tokens
        pooled = compress_pool(rows @ to_value, rows @ to_score, ape, piece, state, ratio=ratio, overlap=overlap)
        entries = piece.entries(ratio)
        slots = piece.derive(
            ("rows of entries", ratio, cache.layout.block_size, id(cache.block_table)),
            partial(cache.physical, piece.slots[entries.request], entries.index),
        )
        store(pooled.to(x.dtype), norm, rope, entries.positions, slots, cache, hadamard=hadamard, eps=eps)


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: kv, score [tokens, width] -> entries[entries, head_dim]; advances `state`."""
    head_dim = kv.shape[1] // (2 if overlap else 1)
    score = score + ape.to(score.dtype)[batch.positions % ratio]
    entries = batch.entries(ratio)
    if len(entries.index):
        current = _windows(kv[:, -head_dim:], score[:, -head_dim:], state, slice(-head_dim, None), batch, ratio, 0)
        if overlap:
            previous = _windows(kv[:, :head_dim], score[:, :head_dim], state, slice(head_dim), batch, ratio, -ratio)
            current = (torch.cat(pair, dim=1) for pair in zip(previous, current, strict=True))
        values, scores = current
        pooled = (scores.softmax(dim=1) * values).sum(dim=1)
    else:
        pooled = kv.new_empty(0, head_dim)
    _advance(kv, score, batch, state)
    return pooled


def _windows(
    kv: Tensor, score: Tensor, state: StateCache, channels: slice, batch: Batch, ratio: int, offset: int
) -> tuple[Tensor, Tensor]:
    """Rows of every completed window shifted by `offset` tokens: values and scores, both [entries, ratio, channels].

    Before the request's first token there is nothing: value 0, score -inf.
    """
    token, kept, at, none = batch.derive(
        ("cpu windows", ratio, offset, state.kv.shape[1]), lambda: _sources(batch, ratio, offset, state.kv.shape[1])
    )
    values, scores = kv[token], score[token]
    if len(kept):
        values.view(-1, values.shape[-1])[kept] = state.kv[..., channels][at].to(values.dtype)
        scores.view(-1, scores.shape[-1])[kept] = state.score[..., channels][at].to(scores.dtype)
    if len(none):
        values.view(-1, values.shape[-1])[none] = 0.0
        scores.view(-1, scores.shape[-1])[none] = float("-inf")
    return values, scores


def _sources(batch: Batch, ratio: int, offset: int, rows: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Where each window's rows are: token in the batch; flat rows that come from the state; those from nowhere."""
    entries = batch.entries(ratio)
    positions = entries.positions.unsqueeze(1) + torch.arange(offset, offset + ratio)
    starts = torch.tensor(batch.starts)[entries.request].unsqueeze(1)
    token = (batch.cu_seqlens[entries.request].unsqueeze(1) + positions - starts).clamp_min(0)
    kept = ((positions < starts) & (positions >= 0)).flatten().nonzero().squeeze(1)
    slots = batch.slots[entries.request].unsqueeze(1).expand_as(positions)
    at = (slots.flatten()[kept], positions.flatten()[kept] % rows)
    return token, kept, at, (positions < 0).flatten().nonzero().squeeze(1)


def _advance(kv: Tensor, score: Tensor, batch: Batch, state: StateCache) -> None:
    """Keep the newest rows of every request; older ones would land on the same places."""
    rows = state.kv.shape[1]
    token, slots, row = batch.derive(("cpu tail", rows), lambda: _tail(batch, rows))
    state.kv[slots, row] = kv[token].to(state.kv.dtype)
    state.score[slots, row] = score[token].to(state.score.dtype)


def _tail(batch: Batch, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    ends = torch.tensor([start + length for start, length in zip(batch.starts, batch.lengths, strict=True)])
    token = (batch.positions >= ends[batch.request] - rows).nonzero().squeeze(1)
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
    work = working_dtype(values)
    for low in range(0, len(values), ROWS):
        at = slice(low, low + ROWS)
        row = values[at].to(work)
        if norm is not None:
            row = row * torch.rsqrt(row.square().mean(-1, keepdim=True) + eps) * norm.to(work)
        row = rotate(row.to(values.dtype), *rope.cos_sin(positions[at]))
        cache.write(hadamard_transform(row) if hadamard else row, slots[at])


def _pieces(batch: Batch) -> Iterator[Batch]:
    """The batch as consecutive batches of at most TOKENS tokens."""
    if batch.tokens <= TOKENS:
        yield batch
        return
    parts: list[tuple[int, int, int]] = []
    room = TOKENS
    for length, start, slot in zip(batch.lengths, batch.starts, batch.slots.tolist(), strict=True):
        while length:
            take = min(length, room)
            parts.append((take, start, slot))
            length, start, room = length - take, start + take, room - take
            if not room:
                yield Batch.build(*map(list, zip(*parts, strict=True)), batch.slots.device)
                parts, room = [], TOKENS
    if parts:
        yield Batch.build(*map(list, zip(*parts, strict=True)), batch.slots.device)
