"""`attn.attend`: tiles of queries meet window rows and entries in pieces, whose softmaxes merge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.layouts import Layout
from hal_jax.exchange import array, bucket, tensor
from hal_jax.numbers import wide
from hal_jax.rows import Pages, pages, physical, read
from hal_jax.tiles import Tiles, tiles

__all__ = ["attend"]

PIECE = 512  # rows at a time

Seen = tuple[Array, Array]
"""Keys [n, head_dim], or [queries, n, head_dim] where each query has its own, and who sees them: bool [queries, n]."""
Merged = tuple[Array, Array, Array]
"""Largest logit and sum of exponentials [queries, heads], weighted sum of rows [queries, heads, head_dim]."""
Softmax = Callable[[Array, Seen], Merged]


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
    """`attn.attend`: out [tokens, heads, head_dim] like q, lse float32 [tokens, heads]."""
    return run(
        q, window, compressed, rows, sink, batch, scale=scale, window_size=window_size, ratio=ratio, softmax=softmax
    )


def run(
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
    softmax: Softmax,
) -> tuple[Tensor, Tensor]:
    """`attend` with a given piece of softmax: the one below, or Pallas's."""
    count = bucket(batch.tokens)
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True)]
    columns = 0
    if compressed is not None and rows is None and ratio > 0:
        columns = bucket(max(ends, default=0) // ratio)
    out, lse = _attend(
        array(q, count),
        tiles(batch),
        pages(window),
        pages(compressed) if compressed is not None else None,
        array(rows, count) if compressed is not None and rows is not None else None,
        array(torch.full((q.shape[1],), -torch.inf) if sink is None else sink.float()),
        jnp.float32(scale),
        layouts=(window.layout, window.layout if compressed is None else compressed.layout),
        window_size=window_size,
        ratio=ratio,
        columns=columns,
        softmax=softmax,
    )
    return tensor(out, batch.tokens), tensor(lse, batch.tokens)


@partial(jax.jit, static_argnames=("layouts", "window_size", "ratio", "columns", "softmax"))
def _attend(
    q: Array,
    split: Tiles,
    window: Pages,
    compressed: Pages | None,
    listed: Array | None,
    sink: Array,
    scale: Array,
    *,
    layouts: tuple[Layout, Layout],
    window_size: int,
    ratio: int,
    columns: int,
    softmax: Softmax,
) -> tuple[Array, Array]:
    def tile(at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        token, position, slot = at
        queries = wide(q[jnp.maximum(token, 0)]) * scale
        shape = queries.shape
        merged = (jnp.full(shape[:2], -jnp.inf), jnp.zeros(shape[:2]), jnp.zeros(shape))

        def meet(merged: Merged, cache: Pages, layout: Layout, row: Array, seen: Array) -> Merged:
            there = physical(cache, layout, slot, row)
            used = seen if row.ndim == 2 else seen.any(0)
            keys = read(cache, layout, jnp.where(used, there, -1))
            return merge(merged, softmax(queries, (keys, seen)))

        real = (token >= 0)[:, None]
        if window_size:
            first = jnp.maximum(position[0] - window_size + 1, 0)
            row = first + jnp.arange(window_size + len(token) - 1)
            seen = real & (row <= position[:, None]) & (row > position[:, None] - window_size)
            merged = meet(merged, window, layouts[0], row, seen)
        if compressed is not None and listed is not None and listed.shape[1]:
            row = listed[jnp.maximum(token, 0)]
            merged = meet(merged, compressed, layouts[1], row, real & (row >= 0))
        elif compressed is not None and columns:
            size = min(PIECE, columns)

            def piece(merged: Merged, first: Array) -> tuple[Merged, None]:
                row = first + jnp.arange(size)
                seen = real & (row < ((position + 1) // ratio)[:, None])
                return meet(merged, compressed, layouts[1], row, seen), None

            merged, _ = lax.scan(piece, merged, jnp.arange(0, columns, size))
        return finish(merged, sink)

    out, lse = lax.map(tile, (split.token, split.position, split.slot))
    out, lse = out.reshape(-1, *out.shape[2:]), lse.reshape(-1, lse.shape[2])
    return out[split.place].astype(q.dtype), lse[split.place]


def softmax(queries: Array, seen: Seen) -> Merged:
    """One piece: queries [n, heads, head_dim], scaled, against the keys they see."""
    keys, mask = seen
    own = "qkd" if keys.ndim == 3 else "kd"
    logits = jnp.einsum(f"qhd,{own}->qhk", queries, keys, precision=lax.Precision.HIGHEST)
    logits = jnp.where(mask[:, None], logits, -jnp.inf)
    top = logits.max(-1)
    weights = jnp.where(mask[:, None], jnp.exp(logits - finite(top)[..., None]), 0.0)
    return top, weights.sum(-1), jnp.einsum(f"qhk,{own}->qhd", weights, keys, precision=lax.Precision.HIGHEST)


def finite(top: Array) -> Array:
    """0 where nothing is seen, so that differences stay numbers."""
    return jnp.where(top == -jnp.inf, 0.0, top)


def merge(one: Merged, other: Merged) -> Merged:
    """The softmax over both pieces' rows."""
    top = jnp.maximum(one[0], other[0])
    left, right = jnp.exp(one[0] - finite(top)), jnp.exp(other[0] - finite(top))
    return (
        top,
        one[1] * left + other[1] * right,
        one[2] * left[..., None] + other[2] * right[..., None],
    )


def finish(merged: Merged, sink: Array) -> tuple[Array, Array]:
    """Out with the sink in the denominator, and lse without it; 0 and +inf where nothing is seen."""
    top, total, summed = merged
    high = finite(jnp.maximum(top, sink))
    weight = jnp.exp(top - high)
    below = total * weight + jnp.exp(sink - high)
    lonely = total == 0
    out = summed * (weight / jnp.where(lonely, 1.0, below))[..., None]
    lse = jnp.where(lonely, jnp.inf, finite(top) + jnp.log(jnp.where(lonely, 1.0, total)))
    return jnp.where(lonely[..., None], 0.0, out), lse
