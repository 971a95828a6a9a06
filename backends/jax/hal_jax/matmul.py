"""Quantisers and products with packed weights in JAX."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import torch
from jax import Array
from torch import Tensor

from hal_jax import numbers
from hal_jax.exchange import bucket, padded, to_jax, to_torch

if TYPE_CHECKING:
    from hal.formats import PackedWeight


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize`: x[tokens, features] -> codes, scales as `hal.formats.Quantized` holds them."""
    rows = len(x)
    codes, scales = _quantize(padded(x, bucket(rows)), activation=activation)
    block = activation != "int8_token"
    code = torch.float8_e4m3fn if activation.startswith("e4m3") else None
    return to_torch(codes, code)[:rows], to_torch(scales, torch.float8_e8m0fnu if block else None)[:rows]


@partial(jax.jit, static_argnames=("activation",))
def _quantize(x: Array, *, activation: str) -> tuple[Array, Array]:
    return numbers.quantize(x.astype(jnp.float32), activation)


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: x[tokens, features] -> y[tokens, outputs] in the dtype of x."""
    rows = len(x)
    y = _matmul(padded(x, bucket(rows)), codes_of(weight), scheme=weight.scheme, activation=activation)
    return to_torch(y)[:rows]


@partial(jax.jit, static_argnames=("scheme", "activation"))
def _matmul(x: Array, weight: tuple[Array, Array | None], *, scheme: str, activation: str) -> Array:
    values = numbers.simulate(x.astype(jnp.float32), activation)
    y = jnp.matmul(values, numbers.matrix(*weight, scheme).T, precision="highest")
    return numbers.rounded(y, x.dtype).astype(x.dtype)


def codes_of(weight: PackedWeight) -> tuple[Array, Array | None]:
    """Codes and scales of a packed weight, or of a stack of them."""
    return to_jax(weight.codes), None if weight.scales is None else to_jax(weight.scales)
