"""Number formats in XLA, exact to the bit: element grids, shared scales, activation quantisers, weight schemes.

What XLA on CPUs does to float32 decides the wording here: it may drop a pair of conversions (so roundings are
`lax.reduce_precision`), turns a division by a constant into a product (so 127 is hidden from it), and flushes subnormal
results to zero (so scales are built from their bits). jax's 64-bit types stay off: nothing here needs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = [
    "QUANTISERS",
    "bits_scale",
    "decode_rows",
    "decode_weight",
    "hadamard",
    "product",
    "quantise",
    "rounded",
    "simulated",
    "wide",
]

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_LEAST = 2.0**-126
_PRECISION = {"bfloat16": (8, 7), "float16": (5, 10)}


@dataclass(frozen=True)
class Quantiser:
    """Blocks of `columns` channels (0: the row) of `element`s; `floor` is the least magnitude a block is scaled by."""

    element: str
    columns: int
    floor: float = 0.0


QUANTISERS = {
    "e4m3_128": Quantiser("e4m3", 128, 1e-4),
    "e4m3_64": Quantiser("e4m3", 64, 1e-4),
    "e4m3_32": Quantiser("e4m3", 32, 1e-4),
    "e2m1_32": Quantiser("e2m1", 32),
    "int8_token": Quantiser("int8", 0, 127e-10),
}
_LARGEST = {"e4m3": 448.0, "e2m1": 6.0, "int8": 127.0}


def wide(x: Array) -> Array:
    """Float32."""
    return x.astype(jnp.float32)


def rounded(x: Array, dtype: str) -> Array:
    """Float32 values as `dtype` holds them; XLA may not undo this, as it may a pair of conversions."""
    return lax.reduce_precision(x, *_PRECISION[dtype]) if dtype in _PRECISION else x


def product(x: Array, weight: Array) -> Array:
    """`x weightᵀ` in float32."""
    return jnp.einsum("...k,nk->...n", x, weight, precision=lax.Precision.HIGHEST)


def bits_scale(code: Array) -> Array:
    """Float32 values of ue8m0 codes from 1 up; 255 is NaN."""
    value = lax.bitcast_convert_type(jnp.maximum(code.astype(jnp.int32), 1) << 23, jnp.float32)
    return jnp.where(code == 255, jnp.nan, value)


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _split(x: Array, columns: int) -> Array:
    """[.., k] -> [.., blocks, columns], zeros behind a last block that is shorter."""
    columns = columns or x.shape[-1]
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % columns)]
    return jnp.pad(x, padding).reshape(*x.shape[:-1], -1, columns)


def _grid(v: Array, element: str) -> Array:
    """Values in units of their scale, rounded to the element's grid, ties to even."""
    if element == "int8":
        return jnp.round(v)
    mantissa, least = (3, -6) if element == "e4m3" else (1, 0)
    exponent = jnp.maximum(((_bits(v) >> 23) & 0xFF) - 127, least)
    step = lax.bitcast_convert_type((jnp.minimum(exponent, 15) - mantissa + 127) << 23, jnp.float32)
    return jnp.round(v / step) * step


def _codes(grid: Array, element: str) -> Array:
    """Codes of values on the grid: uint8, or int8; two e2m1 a byte, low nibble first."""
    if element == "e4m3":
        return lax.bitcast_convert_type(grid.astype(jnp.float8_e4m3fn), jnp.uint8)
    if element == "int8":
        return jnp.where(jnp.isnan(grid), 0.0, grid).astype(jnp.int8)
    steps = jnp.asarray(_E2M1[1:8] * 0.99, jnp.float32)
    magnitude = (jnp.abs(grid)[..., None] > steps).sum(-1).astype(jnp.uint8)
    code = magnitude | (((_bits(grid) < 0) & ~jnp.isnan(grid)).astype(jnp.uint8) << 3)
    return code[..., 0::2] | (code[..., 1::2] << 4)


def quantise(x: Array, name: str) -> tuple[Array, Array]:
    """Codes [.., features] (or half as many bytes) and scales [.., blocks]: ue8m0 as uint8, float32 of int8_token."""
    quantiser = QUANTISERS[name]
    grid, scales, _ = _quantised(wide(x), quantiser)
    return _codes(grid.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]], quantiser.element), scales


def simulated(x: Array, name: str) -> Array:
    """Float32 `x` as the quantiser's codes read back."""
    if name == "none":
        return x
    grid, _, factors = _quantised(x, QUANTISERS[name])
    return (grid * factors[..., None]).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def _quantised(x: Array, quantiser: Quantiser) -> tuple[Array, Array, Array]:
    """Blocks in units of their scale, the scales as stored, and as float32."""
    split, largest = _split(x, quantiser.columns), _LARGEST[quantiser.element]
    amax = jnp.maximum(jnp.abs(split).max(-1), max(quantiser.floor, _LEAST * largest))
    if quantiser.element == "int8":
        divisor = jnp.where(amax > 0, largest, 1.0)  # always `largest`; XLA would multiply by a constant's reciprocal
        scale = jnp.where(jnp.isfinite(amax), amax / divisor, jnp.nan)
        return _grid(split / scale[..., None], "int8"), scale, scale
    bits = _bits(amax * jnp.float32(1 / largest)) & 0x7FFFFFFF
    code = jnp.clip((bits >> 23) + ((bits & 0x7FFFFF) != 0), 1, 255)
    factors = bits_scale(code)
    return _grid(split / factors[..., None], quantiser.element), code.astype(jnp.uint8), factors


def _values(codes: Array, element: str) -> Array:
    """Float32 values of codes, in units of their scale."""
    if element == "e4m3":
        return wide(lax.bitcast_convert_type(codes, jnp.float8_e4m3fn))
    if element == "int8":
        return wide(codes)
    nibbles = jnp.stack([codes & 0xF, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    if element == "int4":
        return wide(nibbles) - 16.0 * (nibbles > 7)
    return jnp.asarray(_E2M1)[nibbles.astype(jnp.int32)]


def _scaled(values: Array, scales: Array, columns: int) -> Array:
    """Values times the scale of their block; ue8m0 scales come as uint8."""
    split = _split(values, columns)
    if scales.dtype == jnp.uint8:  # 2^-127 is subnormal: in two steps
        split = split * jnp.where(scales == 0, 0.5, 1.0)[..., None]
        scales = bits_scale(scales)
    return (split * wide(scales)[..., None]).reshape(*values.shape[:-1], -1)[..., : values.shape[-1]]


def decode_rows(codes: Array, scales: Array | None, name: str) -> Array:
    """Float32 values that activation codes and scales stand for."""
    if name == "none" or scales is None:
        return wide(codes)
    quantiser = QUANTISERS[name]
    return _scaled(_values(codes, quantiser.element), scales, quantiser.columns)


def decode_weight(codes: Array, scales: Array | None, scheme: str) -> Array:
    """Float32 weight [outputs, features] of one of `hal.formats`' schemes."""
    if scales is None:
        return wide(codes)
    if scheme == "fp8_block128":
        values = _values(codes, "e4m3")
        return _scaled(values, jnp.repeat(scales, 128, axis=0)[: values.shape[0]], 128)
    element, columns = {"mxfp4": ("e2m1", 32), "mxfp8": ("e4m3", 32), "w8a8_int8": ("int8", 0)}.get(scheme, ("int4", 0))
    values = _values(codes, element)
    if scheme == "w4a8_int":
        columns = values.shape[-1] // scales.shape[-1]
    if scheme == "w4a8_int_256":
        values, columns = values.T, 256
    return _scaled(values, scales, columns)


def hadamard(x: Array) -> Array:
    """`x H / sqrt(n)` over the last dimension, a power of two, in float32."""
    size, shape = x.shape[-1], x.shape
    for half in (1 << bit for bit in range(size.bit_length() - 1)):
        pairs = x.reshape(*shape[:-1], size // (2 * half), 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        x = jnp.stack([low + high, low - high], -2).reshape(shape)
    return x * jnp.float32(size**-0.5)
