"""RoPE in XLA. Angles come from `hal.rope`, so that every backend rotates by the same ones."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from torch import Tensor

from hal.rope import Rope
from hal_jax.exchange import array, bucket

__all__ = ["cos_sin", "rotated"]


def cos_sin(rope: Rope, positions: Tensor) -> tuple[Array, Array]:
    """Cosines and sines, float32 [bucket of positions, dim / 2]."""
    cos, sin = rope.cos_sin(positions)
    count = bucket(len(positions))
    return array(cos, count), array(sin, count)


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Float32 `x` [n, .., channels], the pairs of its last channels turned; the others as they are."""
    pairs = cos.shape[-1]
    shape = (cos.shape[0], *(1,) * (x.ndim - 2), pairs)
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    turning = x[..., -2 * pairs :]
    even, odd = turning[..., 0::2], turning[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(turning.shape)
    return jnp.concatenate([x[..., : -2 * pairs], turned], -1)
