"""The indexer in JAX: scores of every entry that a token sees, and the best of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, lax
from torch import Tensor

from hal_jax.exchange import bucket, padded, to_torch
from hal_jax.pages import Rows, gather, opened, physical

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

TOGETHER = 16


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: q[tokens, heads, dim], weights[tokens, heads] -> scores[tokens, entries] float32."""
    tokens, size = len(q), bucket(len(q))
    width = int(batch.visible(ratio).max()) if tokens else 0
    scores = _scores(
        padded(q, size),
        padded(weights, size),
        opened(cache),
        padded(batch.visible(ratio), size),
        padded(batch.request, size),
        padded(batch.slots, bucket(batch.requests)),
        scale=scale,
        width=bucket(width),
    )
    return to_torch(scores)[:tokens, :width]


@partial(jax.jit, static_argnames=("scale", "width"))
def _scores(
    q: Array,
    weights: Array,
    cache: tuple[Rows, Array, Array],
    visible: Array,
    request: Array,
    slots: Array,
    *,
    scale: float,
    width: int,
) -> Array:
    """A request's entries are decoded once, however many tokens look at them."""
    layout, pages, table = cache
    entry = jnp.arange(width)
    most = jax.ops.segment_max(visible, request, slots.shape[0])

    def keys(one: tuple[Array, Array]) -> Array:
        slot, seen = one
        return gather(layout, pages, jnp.where(entry < seen, physical(layout, table, slot, entry), -1))

    decoded = lax.map(keys, (slots, most))

    def one(token: tuple[Array, Array, Array, Array]) -> Array:
        query, weight, seen, which = token
        product = jnp.matmul(query.astype(jnp.float32), decoded[which].T, precision="highest")
        score = jnp.matmul(weight.astype(jnp.float32) * scale, jnp.maximum(product, 0.0), precision="highest")
        return jnp.where(entry < seen, score, -jnp.inf)

    return lax.map(one, (q, weights, visible, request), batch_size=TOGETHER)
