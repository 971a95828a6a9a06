"""Some rows of one expert: two products in blocks of outputs, the clamped SwiGLU in the first one's epilogue."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from hal_jax.numbers import rounded, simulated
from hal_jax.pallas import GPU

__all__ = ["one_expert"]

OUTPUTS = 128
"""Outputs of a program."""


def one_expert(
    x: Array,
    factor: Array,
    w13: Array,
    w2: Array,
    clamp: Array,
    dtype: str,
    activation: str,
    *,
    interpret: bool = False,
    params: Any = None,
) -> Array:
    """As `hal_jax.experts.one_expert`: rows [n, hidden] -> [n, hidden]."""
    rows, hidden = x.shape
    inter = w13.shape[0] // 2
    missing = -inter % OUTPUTS
    gate, up = (jnp.pad(half, ((0, missing), (0, 0))) for half in jnp.split(w13, 2))
    inner = pl.pallas_call(
        _gated,
        grid=((inter + missing) // OUTPUTS,),
        in_specs=[
            pl.BlockSpec((rows, hidden), lambda i: (0, 0)),
            pl.BlockSpec((rows, 1), lambda i: (0, 0)),
            pl.BlockSpec((OUTPUTS, hidden), lambda i: (i, 0)),
            pl.BlockSpec((OUTPUTS, hidden), lambda i: (i, 0)),
            pl.BlockSpec((1, 1), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((rows, OUTPUTS), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((rows, inter + missing), jnp.float32),
        interpret=interpret,
        compiler_params=params,
    )(x, factor[:, None], gate, up, clamp.reshape(1, 1))[:, :inter]
    return _product(simulated(rounded(inner, dtype), activation), w2, interpret, params)


def _product(x: Array, weight: Array, interpret: bool, params: Any) -> Array:
    """`x weightᵀ`, a block of outputs per program."""
    outputs = weight.shape[0]
    weight = jnp.pad(weight, ((0, -outputs % OUTPUTS), (0, 0)))
    done: Array = pl.pallas_call(
        _multiply,
        grid=(weight.shape[0] // OUTPUTS,),
        in_specs=[
            pl.BlockSpec(x.shape, lambda i: (0, 0)),
            pl.BlockSpec((OUTPUTS, weight.shape[1]), lambda i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((x.shape[0], OUTPUTS), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32),
        interpret=interpret,
        compiler_params=params,
    )(x, weight)
    return done[:, :outputs]


_dot = partial(
    lax.dot_general,
    dimension_numbers=(((1,), (1,)), ((), ())),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
)


def _gated(x, factor, gate, up, clamp, out):  # type: ignore[no-untyped-def]  # references of Pallas
    limit = clamp[...]
    left = jnp.minimum(_dot(x[...], gate[...]), limit)
    right = jnp.maximum(jnp.minimum(_dot(x[...], up[...]), limit), -limit)
    out[...] = left / (1.0 + jnp.exp(-left)) * right * factor[...]


def _multiply(x, weight, out):  # type: ignore[no-untyped-def]  # references of Pallas
    out[...] = _dot(x[...], weight[...])


interpreted = partial(one_expert, interpret=True)
on_gpu = partial(one_expert, params=GPU)
