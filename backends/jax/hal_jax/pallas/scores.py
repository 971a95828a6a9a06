"""The indexer's scores: all heads of some queries against a block of entries per program."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from hal_jax.pallas import GPU

__all__ = ["scores"]

ENTRIES = 128
"""Entries of a program."""


def scores(queries: Array, factors: Array, keys: Array, *, interpret: bool = False, params: Any = None) -> Array:
    """As `hal_jax.selection.scores`: sum over heads of factor * relu(q . k), [n, entries]."""
    number, heads, dim = queries.shape
    width = keys.shape[0]
    keys = jnp.pad(keys, ((0, -width % ENTRIES), (0, 0)))
    found = pl.pallas_call(
        partial(_block, heads=heads),
        grid=(number, keys.shape[0] // ENTRIES),
        in_specs=[
            pl.BlockSpec((1, heads, dim), lambda i, j: (i, 0, 0)),
            pl.BlockSpec((1, heads, 1), lambda i, j: (i, 0, 0)),
            pl.BlockSpec((ENTRIES, dim), lambda i, j: (j, 0)),
        ],
        out_specs=pl.BlockSpec((1, 1, ENTRIES), lambda i, j: (i, 0, j)),
        out_shape=jax.ShapeDtypeStruct((number, 1, keys.shape[0]), jnp.float32),
        interpret=interpret,
        compiler_params=params,
    )(queries, factors[..., None], keys)
    return found[:, 0, :width]


def _block(query, factor, keys, out, *, heads):  # type: ignore[no-untyped-def]  # references of Pallas
    product = lax.dot_general(
        query[0],
        keys[...],
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    out[0] = jnp.sum(factor[0] * jnp.maximum(product, 0.0), axis=0, keepdims=True)


interpreted = partial(scores, interpret=True)
on_gpu = partial(scores, params=GPU)
