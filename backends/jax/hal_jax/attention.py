"""Attention over window and compressed rows in JAX: one softmax per token, some tokens at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, lax
from torch import Tensor

from hal_jax.exchange import bucket, padded, to_jax, to_torch
from hal_jax.numbers import rounded
from hal_jax.pages import Rows, gather, opened, physical

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

TOGETHER = 16
"""Tokens whose rows are gathered at a time."""


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
    """`attn.attend`: q[tokens, heads, head_dim] -> out like q, lse[tokens, heads] float32."""
    tokens, size = len(q), bucket(len(q))
    prefix = 0
    if compressed is not None and rows is None:
        prefix = bucket(int(batch.visible(ratio).max())) if tokens else bucket(0)
    out, lse = _attend(
        padded(q, size),
        opened(window),
        None if compressed is None else opened(compressed),
        None if rows is None else padded(rows, size, -1),
        None if sink is None else to_jax(sink),
        padded(batch.positions, size, -1),
        padded(batch.request, size),
        padded(batch.slots, bucket(batch.requests)),
        scale=scale,
        window_size=window_size,
        ratio=ratio,
        prefix=prefix,
    )
    return to_torch(out)[:tokens], to_torch(lse)[:tokens]


Opened = tuple[Rows, Array, Array]


@partial(jax.jit, static_argnames=("scale", "window_size", "ratio", "prefix"))
def _attend(
    q: Array,
    window: Opened,
    compressed: Opened | None,
    listed: Array | None,
    sink: Array | None,
    positions: Array,
    request: Array,
    slots: Array,
    *,
    scale: float,
    window_size: int,
    ratio: int,
    prefix: int,
) -> tuple[Array, Array]:
    """A padding token has position -1 and sees nothing. The entries of a prefix are decoded once per request."""
    shared = None
    if compressed is not None and listed is None:
        layout, pages, table = compressed
        entry = jnp.arange(prefix)
        visible = jax.ops.segment_max(
            jnp.where(positions >= 0, (positions + 1) // max(ratio, 1), 0), request, slots.shape[0]
        )
        at = jax.vmap(lambda slot, seen: jnp.where(entry < seen, physical(layout, table, slot, entry), -1))(
            slots, visible
        )
        shared = lax.map(lambda one: gather(layout, pages, one), at)

    def one(token: tuple[Array, Array, Array, Array | None]) -> tuple[Array, Array]:
        query, position, which, chosen = token
        slot = slots[which]
        layout, pages, table = window
        near = position - window_size + 1 + jnp.arange(window_size)
        at = jnp.where(position >= 0, physical(layout, table, slot, near), -1)
        keys, seen = gather(layout, pages, at), at >= 0
        if shared is not None:
            keys = jnp.concatenate([keys, shared[which]])
            seen = jnp.concatenate([seen, (jnp.arange(prefix) < (position + 1) // ratio) & (position >= 0)])
        elif compressed is not None and chosen is not None:
            layout, pages, table = compressed
            at = physical(layout, table, slot, chosen)
            keys = jnp.concatenate([keys, gather(layout, pages, at)])
            seen = jnp.concatenate([seen, at >= 0])
        return softmax(query.astype(jnp.float32), keys, seen, sink, scale)

    out, lse = lax.map(one, (q, positions, request, listed), batch_size=TOGETHER)
    return rounded(out, q.dtype).astype(q.dtype), lse


def softmax(query: Array, keys: Array, seen: Array, sink: Array | None, scale: float) -> tuple[Array, Array]:
    """`out[heads, dim]` and `lse[heads]` of one token: a softmax over the keys that are seen, which are the values."""
    score = jnp.where(seen, jnp.matmul(query, keys.T, precision="highest") * scale, -jnp.inf)
    top = jnp.max(score, -1, initial=-jnp.inf)
    any_ = jnp.isfinite(top)
    top = jnp.where(any_, top, 0.0)
    share = jnp.exp(score - top[:, None])
    total = share.sum(-1)
    below = total if sink is None else total + jnp.exp(sink - top)
    out = jnp.matmul(share, keys, precision="highest") / jnp.where(any_, below, 1.0)[:, None]
    return jnp.where(any_[:, None], out, 0.0), jnp.where(any_, top + jnp.log(total), jnp.inf)
