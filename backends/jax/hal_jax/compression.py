"""The compressor in JAX: windows pooled into entries, rows finished and quantised. Caches and states change in torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import torch
from jax import Array
from torch import Tensor

from hal_jax.exchange import bucket, padded, to_jax, to_torch
from hal_jax.numbers import rounded
from hal_jax.pages import Rows, encoded, opened, write

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache, StateCache
    from hal.rope import Rope


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: kv, score [tokens, width] -> entries[entries, head_dim] float32; advances `state`."""
    entries = batch.entries(ratio)
    count, size = len(entries.index), bucket(len(entries.index))
    tokens = bucket(len(kv))
    score = score + ape[batch.positions % ratio]
    starts = torch.tensor(batch.starts, dtype=torch.int64)
    out = _pool(
        padded(kv, tokens),
        padded(score, tokens),
        to_jax(state.tensor),
        padded(entries.index, size),
        padded(batch.slots[entries.request], size),
        padded(starts[entries.request], size),
        padded(batch.cu_seqlens[entries.request], size),
        ratio=ratio,
        overlap=overlap,
    )
    found = to_torch(out)[:count].clone()  # before the state, which it may share memory with, moves on
    _advance(kv, score, batch, state, ratio, overlap)
    return found


@partial(jax.jit, static_argnames=("ratio", "overlap"))
def _pool(
    kv: Array,
    score: Array,
    state: Array,
    index: Array,
    slot: Array,
    start: Array,
    first: Array,
    *,
    ratio: int,
    overlap: bool,
) -> Array:
    """`[entries, dim]`: per channel, a softmax over a window's tokens; with overlap the previous window's come first."""
    halves = 2 if overlap else 1
    dim, kept = kv.shape[1] // halves, state.shape[1]
    values, weights = [], []
    for half in range(halves):
        position = (index * ratio - (halves - 1 - half) * ratio)[:, None] + jnp.arange(ratio)
        fresh = position >= start[:, None]
        at = jnp.where(fresh, first[:, None] + position - start[:, None], 0)
        old = state[slot[:, None], jnp.where(fresh, 0, position % kept)]
        own = slice(half * dim, (half + 1) * dim)
        held = slice(kv.shape[1] + half * dim, kv.shape[1] + (half + 1) * dim)
        new = fresh[..., None]
        exists = (position >= 0)[..., None]
        values.append(jnp.where(exists, jnp.where(new, kv[at][..., own], old[..., own]), 0.0))
        weights.append(jnp.where(exists, jnp.where(new, score[at][..., own], old[..., held]), -jnp.inf))
    share = jax.nn.softmax(jnp.concatenate(weights, 1), axis=1)
    return (share * jnp.concatenate(values, 1)).sum(1)


def _advance(kv: Tensor, score: Tensor, batch: Batch, state: StateCache, ratio: int, overlap: bool) -> None:
    """Keep the tokens behind each request's last complete window, and with overlap that window's."""
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True)]
    since = torch.tensor([end // ratio * ratio - ratio * overlap for end in ends], dtype=torch.int64)
    live = batch.positions >= since[batch.request]
    place = batch.slots[batch.request[live]], batch.positions[live] % state.tensor.shape[1]
    state.tensor[place] = torch.cat([kv, score], -1)[live].to(state.tensor.dtype)


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
    """`attn.store`: values[rows, head_dim] through norm, RoPE, Hadamard and the layout's quantiser, into its pages."""
    kept = (slots >= 0).nonzero().squeeze(1)
    size = bucket(len(values))
    cos, sin = rope.cos_sin(positions)
    fields = _finish(
        padded(values, size),
        None if norm is None else to_jax(norm),
        padded(cos, size),
        padded(sin, size),
        opened(cache)[0],
        hadamard=hadamard,
        eps=eps,
    )
    write(cache, fields, kept, slots[kept])


@partial(jax.jit, static_argnames=("hadamard", "eps"))
def _finish(
    values: Array, norm: Array | None, cos: Array, sin: Array, rows: Rows, *, hadamard: bool, eps: float
) -> dict[str, Array]:
    """Every step rounds to the model's type."""
    x, dtype = values.astype(jnp.float32), values.dtype
    if norm is not None:
        root = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
        x = rounded(norm.astype(jnp.float32) * x * root, dtype)
    still, turning = x[:, : x.shape[1] - 2 * cos.shape[1]], x[:, x.shape[1] - 2 * cos.shape[1] :]
    even, odd = turning[:, ::2], turning[:, 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(turning.shape)
    x = jnp.concatenate([still, rounded(turned, dtype)], -1)
    if hadamard:
        x = rounded(transform(x), dtype)
    return encoded(rows, x)


def transform(x: Array) -> Array:
    """Orthonormal Hadamard transform of the last dimension, by butterflies."""
    width = x.shape[-1]
    half = 1
    while half < width:
        pair = x.reshape(*x.shape[:-1], -1, 2, half)
        low, high = pair[..., 0, :], pair[..., 1, :]
        x = jnp.stack([low + high, low - high], -2).reshape(x.shape)
        half *= 2
    return x * width**-0.5
