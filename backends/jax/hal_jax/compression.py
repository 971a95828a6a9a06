"""`attn.compress`, `attn.compress_pool`, `attn.store`: windows of tokens to entries, rows to the bytes of a cache.

XLA computes entries, scores and the codes of rows; torch puts them into states and pages, in place.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.layouts import Layout
from hal.rope import Rope
from hal_jax.exchange import array, bucket, platform, tensor
from hal_jax.numbers import hadamard as transform
from hal_jax.numbers import product, rounded, wide
from hal_jax.rotation import cos_sin, rotated
from hal_jax.rows import encode

__all__ = ["compress", "compress_pool", "store"]

_ENTRIES = 64  # pooled at a time


class Windows(NamedTuple):
    """Entries to pool [n]: window, the token of the batch that position 0 of the request would be, slot, start.

    Tokens [m]: position.
    """

    index: Array
    shift: Array
    slot: Array
    start: Array
    position: Array


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
    """`attn.compress`: hidden states into entries of `cache`; `state` keeps the tails."""
    count = bucket(batch.tokens)
    kv, score = _project(array(x, count), array(wkv), array(wgate))
    pooled = _pooled(kv, score, ape, batch, state, ratio, overlap)
    entries = batch.entries(ratio)
    slots = cache.physical(batch.slots[entries.request], entries.index)
    _stored(pooled, x.dtype, norm, rope, entries.positions, slots, cache, hadamard, eps)


@jax.jit
def _project(x: Array, wkv: Array, wgate: Array) -> tuple[Array, Array]:
    return product(wide(x), wide(wkv)), product(wide(x), wide(wgate))


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: float32 [entries, head_dim] in the order of `batch.entries(ratio)`."""
    count = bucket(batch.tokens)
    pooled = _pooled(array(kv, count), array(score, count), ape, batch, state, ratio, overlap)
    return tensor(pooled, len(batch.entries(ratio).index))


def _pooled(kv: Array, score: Array, ape: Tensor, batch: Batch, state: StateCache, ratio: int, overlap: bool) -> Array:
    """Entries of the batch, as many as their bucket has; the state is advanced."""
    windows = batch.derive(("jax", "windows", ratio, platform()), lambda: _windows(batch, ratio))
    rows = _rows(kv, score, array(ape), windows.position, ratio)
    pooled = _pool(rows, array(state.tensor), windows, ratio=ratio, overlap=overlap).block_until_ready()
    last, slots, row = batch.derive(("jax", "kept", state.tensor.shape[1]), lambda: _kept(batch, state.tensor.shape[1]))
    state.tensor[slots, row] = tensor(rows)[last]
    return pooled


def _windows(batch: Batch, ratio: int) -> Windows:
    entries = batch.entries(ratio)
    starts = torch.tensor(batch.starts, dtype=torch.int64)
    shift = batch.cu_seqlens[:-1].long() - starts
    count = bucket(len(entries.index))
    return Windows(
        array(entries.index, count),
        array(shift[entries.request], count),
        array(batch.slots[entries.request], count),
        array(starts[entries.request], count),
        array(batch.positions, bucket(batch.tokens)),
    )


def _kept(batch: Batch, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that the state keeps, the last `rows` of each request: which, their slots, their rows."""
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True)]
    first = torch.tensor(ends, dtype=torch.int64) - rows
    last = (batch.positions >= first[batch.request]).nonzero().squeeze(1)
    return last, batch.slots[batch.request[last]], batch.positions[last] % rows


@partial(jax.jit, static_argnames="ratio")
def _rows(kv: Array, score: Array, ape: Array, position: Array, ratio: int) -> Array:
    """What the state holds of each token: its value, its score with ape."""
    return jnp.concatenate([kv, score + ape[position % ratio]], -1)


@partial(jax.jit, static_argnames=("ratio", "overlap"))
def _pool(rows: Array, state: Array, windows: Windows, *, ratio: int, overlap: bool) -> Array:
    width = rows.shape[-1] // 2
    head_dim = width // (1 + overlap)

    def window(index: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        """Values and scores [ratio, width] of a window's tokens, from the batch or the state; none before window 0."""
        shift, slot, start = at
        position = index * ratio + jnp.arange(ratio)
        new = rows[jnp.clip(position + shift, 0, rows.shape[0] - 1)]
        found = jnp.where((position >= start)[:, None], new, state[slot, position % state.shape[1]])
        there = index >= 0
        return jnp.where(there, found[:, :width], 0.0), jnp.where(there, found[:, width:], -jnp.inf)

    def entry(at: tuple[Array, Array, Array, Array]) -> Array:
        index, *rest = at
        values, scores = window(index, tuple(rest))
        if overlap:
            before = window(index - 1, tuple(rest))
            values = jnp.concatenate([before[0][:, :head_dim], values[:, head_dim:]])
            scores = jnp.concatenate([before[1][:, :head_dim], scores[:, head_dim:]])
        return (jax.nn.softmax(scores, axis=0) * values).sum(0)

    return lax.map(entry, (windows.index, windows.shift, windows.slot, windows.start), batch_size=_ENTRIES)


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
    """`attn.store`: values [rows, head_dim] normed, rotated, transformed, quantised, into physical rows; not -1."""
    _stored(array(values, bucket(len(values))), values.dtype, norm, rope, positions, slots, cache, hadamard, eps)


def _stored(
    values: Array,
    dtype: torch.dtype,
    norm: Tensor | None,
    rope: Rope,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
    hadamard: bool,
    eps: float,
) -> None:
    """`store` of an array that has a bucket's length."""
    coded = _coded(
        values,
        array(norm) if norm is not None else None,
        cos_sin(rope, positions),
        jnp.float32(eps),
        layout=cache.layout,
        dtype=str(dtype).removeprefix("torch."),
        hadamard=hadamard,
    )
    kept = (slots >= 0).nonzero().squeeze(1)
    size = cache.layout.block_size
    place = slots[kept] // size, slots[kept] % size
    for field, view in cache.layout.views(cache.pages).items():
        view[place] = tensor(coded[field])[kept]


@partial(jax.jit, static_argnames=("layout", "dtype", "hadamard"))
def _coded(
    values: Array,
    norm: Array | None,
    turns: tuple[Array, Array],
    eps: Array,
    *,
    layout: Layout,
    dtype: str,
    hadamard: bool,
) -> dict[str, Array]:
    row = rounded(wide(values), dtype)
    if norm is not None:
        row = rounded(wide(norm) * row * lax.rsqrt((row * row).mean(-1, keepdims=True) + eps), dtype)
    row = rounded(rotated(row, *turns), dtype)
    if hadamard:
        row = rounded(transform(row), dtype)
    return encode(layout, row)
