"""`mhc.pre` and `mhc.post`: float32 mixes, Sinkhorn-Knopp as a loop, weighted sums of the streams."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from torch import Tensor

from hal_jax.exchange import array, bucket, tensor
from hal_jax.numbers import product, wide

__all__ = ["post", "pre"]


def pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`mhc.pre`: streams [tokens, n, hidden] -> y in their dtype, post and comb float32."""
    tokens = len(streams)
    given = (array(streams, bucket(tokens)), array(fn), array(scale), array(base))
    found = _pre(*given, iterations=iterations, norm_eps=norm_eps, eps=eps)
    y, expand, comb = (tensor(x, tokens) for x in found)
    return y, expand, comb


@partial(jax.jit, static_argnames=("iterations", "norm_eps", "eps"))
def _pre(
    streams: Array, fn: Array, scale: Array, base: Array, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Array, Array, Array]:
    n, full = streams.shape[1], wide(streams)
    flat = full.reshape(len(full), -1)
    logits = product(flat, fn) * lax.rsqrt((flat * flat).mean(-1, keepdims=True) + norm_eps)
    logits = logits * jnp.repeat(scale, jnp.array([n, n, n * n]), total_repeat_length=(2 + n) * n) + base
    weights, expand, comb = jnp.split(logits, [n, 2 * n], -1)
    y = jnp.einsum("tn,tnc->tc", jax.nn.sigmoid(weights) + eps, full, precision=lax.Precision.HIGHEST)

    def divided(comb: Array, axis: int) -> Array:
        return comb / (comb.sum(axis, keepdims=True) + eps)

    comb = divided(jax.nn.softmax(comb.reshape(-1, n, n), -1) + eps, 1)
    comb = lax.fori_loop(1, iterations, lambda _, comb: divided(divided(comb, 2), 1), comb)
    return y.astype(streams.dtype), 2 * jax.nn.sigmoid(expand), comb


def post(y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`mhc.post`: y [tokens, hidden] onto streams [tokens, n, hidden], in their dtype."""
    count = bucket(len(streams))
    return tensor(_post(*(array(x, count) for x in (y, streams, post, comb))), len(streams))


@jax.jit
def _post(y: Array, streams: Array, post: Array, comb: Array) -> Array:
    mixed = jnp.einsum("tjk,tjc->tkc", comb, wide(streams), precision=lax.Precision.HIGHEST)
    return (mixed + post[:, :, None] * wide(y)[:, None]).astype(streams.dtype)
