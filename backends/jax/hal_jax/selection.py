"""The lightning indexer, `attn.select` and `attn.index_scores`: a tile of queries against a request's entries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.layouts import Layout
from hal.rope import Rope
from hal_jax.exchange import array, bucket, platform, tensor
from hal_jax.numbers import hadamard as transform
from hal_jax.numbers import rounded, simulated, wide
from hal_jax.rotation import cos_sin, rotated
from hal_jax.rows import Pages, pages, physical, read
from hal_jax.tiles import Tiles, tiles

__all__ = ["index_scores", "select"]

Scores = Callable[[Array, Array, Array], Array]
"""Queries [n, heads, dim], weights [n, heads], keys [entries, dim] -> scores [n, entries]."""


def select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    *,
    top_k: int,
    ratio: int,
    hadamard: bool,
    scale: float,
) -> Tensor:
    """`attn.select`: int32 [tokens, top_k], the best-scored visible entries of each token, then -1."""
    return run_select(
        q, weights, rope, batch, cache, top_k=top_k, ratio=ratio, hadamard=hadamard, scale=scale, scores=scores
    )


def run_select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    *,
    top_k: int,
    ratio: int,
    hadamard: bool,
    scale: float,
    scores: Scores,
) -> Tensor:
    """`select` with a given product: the one below, or Pallas's."""
    count = bucket(batch.tokens)
    turns = batch.derive(("jax", "rope", rope, platform()), lambda: cos_sin(rope, batch.positions))
    chosen = _select(
        array(q, count),
        array(weights, count),
        turns,
        tiles(batch),
        pages(cache),
        jnp.float32(scale),
        layout=cache.layout,
        ratio=ratio,
        columns=bucket(_entries(batch, ratio)),
        top_k=top_k,
        hadamard=hadamard,
        scores=scores,
    )
    return tensor(chosen, batch.tokens)


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: float32 [tokens, entries], -inf where a token does not see an entry."""
    return run_index_scores(q, weights, batch, cache, ratio=ratio, scale=scale, scores=scores)


def run_index_scores(
    q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float, scores: Scores
) -> Tensor:
    """`index_scores` with a given product."""
    count, entries = bucket(batch.tokens), _entries(batch, ratio)
    found = _index_scores(
        array(q, count),
        array(weights, count),
        tiles(batch),
        pages(cache),
        jnp.float32(scale),
        layout=cache.layout,
        ratio=ratio,
        columns=bucket(entries),
        scores=scores,
    )
    return tensor(found, batch.tokens)[:, :entries].contiguous()


def _entries(batch: Batch, ratio: int) -> int:
    """The most entries that a token of the batch sees."""
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True) if length]
    return max(ends, default=0) // ratio


@partial(jax.jit, static_argnames=("layout", "ratio", "columns", "top_k", "hadamard", "scores"))
def _select(
    q: Array,
    weights: Array,
    turns: tuple[Array, Array],
    split: Tiles,
    cache: Pages,
    scale: Array,
    *,
    layout: Layout,
    ratio: int,
    columns: int,
    top_k: int,
    hadamard: bool,
    scores: Scores,
) -> Array:
    dtype = q.dtype.name
    queries = rounded(rotated(wide(q), *turns), dtype)
    if hadamard:
        queries = rounded(transform(queries), dtype)
    queries = rounded(simulated(queries, layout.index_activation), dtype)
    most = min(top_k, columns)

    def best(found: Array) -> Array:
        value, entry = lax.top_k(jnp.where(found == 0, 0.0, found), most)  # -0 is below 0 in XLA's order
        return jnp.where(value == -jnp.inf, -1, entry)

    rows = _tiled(queries, weights, split, cache, scale, layout, ratio, columns, scores, best)
    return jnp.pad(rows, ((0, 0), (0, top_k - most)), constant_values=-1).astype(jnp.int32)


@partial(jax.jit, static_argnames=("layout", "ratio", "columns", "scores"))
def _index_scores(
    q: Array,
    weights: Array,
    split: Tiles,
    cache: Pages,
    scale: Array,
    *,
    layout: Layout,
    ratio: int,
    columns: int,
    scores: Scores,
) -> Array:
    return _tiled(wide(q), weights, split, cache, scale, layout, ratio, columns, scores, lambda found: found)


def _tiled(
    queries: Array,
    weights: Array,
    split: Tiles,
    cache: Pages,
    scale: Array,
    layout: Layout,
    ratio: int,
    columns: int,
    scores: Scores,
    then: Callable[[Array], Array],
) -> Array:
    """`then` of every token's scores [n, columns], -inf where it does not see: [tokens, ..]."""
    factors = wide(weights) * scale

    def tile(at: tuple[Array, Array, Array]) -> Array:
        token, position, slot = at
        row, visible = jnp.arange(columns), (position + 1) // ratio
        keys = read(cache, layout, jnp.where(row < visible.max(), physical(cache, layout, slot, row), -1))
        place = jnp.maximum(token, 0)
        return then(jnp.where(row < visible[:, None], scores(queries[place], factors[place], keys), -jnp.inf))

    out = lax.map(tile, (split.token, split.position, split.slot))
    return out.reshape(-1, *out.shape[2:])[split.place]


def scores(queries: Array, factors: Array, keys: Array) -> Array:
    """Sum over heads of factor * relu(q . k), one head at a time."""

    def head(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        query, factor = at
        found = jnp.einsum("qd,kd->qk", query, keys, precision=lax.Precision.HIGHEST)
        return total + factor[:, None] * jnp.maximum(found, 0), None

    total = jnp.zeros((queries.shape[0], keys.shape[0]))
    return lax.scan(head, total, (queries.swapaxes(0, 1), factors.T))[0]
