"""A piece of `attn.attend`: a query's heads against the rows it sees, one program per query."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from hal_jax.attention import Merged, Seen
from hal_jax.exchange import bucket
from hal_jax.pallas import GPU

__all__ = ["softmax"]

LANES = 128
LOWEST = -1e30
"""Stands for -inf inside: the difference of two is a number."""


def softmax(queries: Array, seen: Seen, *, interpret: bool = False, params: Any = None) -> Merged:
    """As `hal_jax.attention.softmax`: queries [n, heads, head_dim], scaled, against the keys they see."""
    keys, mask = seen
    number, heads, dim = queries.shape
    rows = max(LANES, bucket(mask.shape[1]))  # Triton wants powers of two
    missing = rows - mask.shape[1]
    own = keys.ndim == 3
    keys = jnp.pad(keys, [(0, 0)] * (keys.ndim - 2) + [(0, missing), (0, 0)])
    keys = keys if own else keys[None]
    mask = jnp.pad(mask, ((0, 0), (0, missing))).astype(jnp.float32)[:, None]
    top, total, summed = pl.pallas_call(
        _piece,
        grid=(number,),
        in_specs=[
            pl.BlockSpec((1, heads, dim), lambda i: (i, 0, 0)),
            pl.BlockSpec((1, rows, dim), (lambda i: (i, 0, 0)) if own else (lambda i: (0, 0, 0))),
            pl.BlockSpec((1, 1, rows), lambda i: (i, 0, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, heads, 1), lambda i: (i, 0, 0)),
            pl.BlockSpec((1, heads, 1), lambda i: (i, 0, 0)),
            pl.BlockSpec((1, heads, dim), lambda i: (i, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((number, heads, 1), jnp.float32),
            jax.ShapeDtypeStruct((number, heads, 1), jnp.float32),
            jax.ShapeDtypeStruct((number, heads, dim), jnp.float32),
        ],
        interpret=interpret,
        compiler_params=params,
    )(queries, keys, mask)
    top = jnp.where(top[..., 0] <= LOWEST, -jnp.inf, top[..., 0])
    return top, total[..., 0], summed


def _piece(query, keys, mask, top, total, summed):  # type: ignore[no-untyped-def]  # references of Pallas
    rows = keys[0]
    dot = partial(lax.dot_general, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    logits = dot(query[0], rows, (((1,), (1,)), ((), ())))
    seen = mask[0] > 0
    logits = jnp.where(seen, logits, LOWEST)
    high = jnp.max(logits, axis=1, keepdims=True)
    weights = jnp.where(seen, jnp.exp(logits - high), 0.0)
    top[0] = high
    total[0] = jnp.sum(weights, axis=1, keepdims=True)
    summed[0] = dot(weights, rows, (((1,), (0,)), ((), ())))


interpreted = partial(softmax, interpret=True)
on_gpu = partial(softmax, params=GPU)
