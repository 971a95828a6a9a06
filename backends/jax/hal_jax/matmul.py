"""`quant.quantize` and `quant.matmul`: codes bit for bit, float32 products with weights decoded on the way."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import torch
from jax import Array
from torch import Tensor

from hal.derived import derived
from hal.formats import PackedWeight
from hal_jax.exchange import array, bucket, platform, tensor
from hal_jax.numbers import QUANTISERS, decode_weight, product, quantise, simulated, wide

__all__ = ["Stored", "matmul", "quantize", "stored"]

_CODES = {"e4m3": torch.float8_e4m3fn, "e2m1": torch.uint8, "int8": torch.int8}


class Stored(NamedTuple):
    """A packed weight's arrays, 8-bit floats as bytes."""

    codes: Array
    scales: Array | None


def stored(weight: PackedWeight) -> Stored:
    """The weight as XLA sees it, looked at once per weight and platform."""
    return derived(
        weight,
        ("jax", platform()),
        lambda: Stored(array(weight.codes), array(weight.scales) if weight.scales is not None else None),
    )


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize`: codes and scales of x [tokens, features]."""
    codes, scales = _quantize(array(x, bucket(len(x))), activation=activation)
    element = QUANTISERS[activation].element
    scale = torch.float32 if element == "int8" else torch.float8_e8m0fnu
    return tensor(codes, len(x), _CODES[element]), tensor(scales, len(x), scale)


_quantize = partial(jax.jit, static_argnames="activation")(lambda x, activation: quantise(x, activation))


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: y [tokens, outputs] in the dtype of x [tokens, features]."""
    y = _matmul(array(x, bucket(len(x))), stored(weight), scheme=weight.scheme, activation=activation)
    return tensor(y, len(x))


@partial(jax.jit, static_argnames=("scheme", "activation"))
def _matmul(x: Array, weight: Stored, *, scheme: str, activation: str) -> Array:
    values = decode_weight(weight.codes, weight.scales, scheme)
    return product(simulated(wide(x), activation), values).astype(x.dtype)
