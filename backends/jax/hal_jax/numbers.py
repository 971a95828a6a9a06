"""Number formats in JAX, exact to the bit: roundings, activation quantisers, weight schemes.

XLA may keep more precision than a type has where it fuses; roundings that a contract asks for are therefore
`lax.reduce_precision`, which it keeps. Scales are powers of two made from bits, so that no library function decides.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["decode_e2m1", "decode_e4m3", "dequantize", "matrix", "power", "quantize", "rounded", "simulate"]

BLOCK = {"e4m3_128": 128, "e4m3_64": 64, "e4m3_32": 32, "e2m1_32": 32}
LARGEST = {"e4m3": 448.0, "e2m1": 6.0}
FLOOR = {"e4m3": np.float32(1e-4), "e2m1": np.float32(6 * 2.0**-126)}
INT8_FLOOR = np.float32(1.27e-8)

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
BITS = {np.dtype(jnp.bfloat16): (8, 7), np.dtype(np.float16): (5, 10)}


def rounded(x: Array, dtype: Any) -> Array:
    """float32 rounded to a type's grid, still float32."""
    bits = BITS.get(np.dtype(dtype))
    return x if bits is None else lax.reduce_precision(x, *bits)


def power(code: Array) -> Array:
    """float32 of ue8m0 codes: 2**(code - 127), NaN for 255."""
    wide = code.astype(jnp.int32)
    bits = jnp.where(wide == 0, 0x00400000, jnp.where(wide == 255, 0x7FC00000, wide << 23))
    return lax.bitcast_convert_type(bits, jnp.float32)


def decode_e4m3(codes: Array) -> Array:
    """float32 of e4m3 bytes."""
    return lax.bitcast_convert_type(codes, jnp.float8_e4m3fn).astype(jnp.float32)


def decode_e2m1(codes: Array) -> Array:
    """float32 [.., 2 n] of bytes [.., n], low nibble first."""
    nibbles = jnp.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    return jnp.take(jnp.asarray(E2M1), nibbles.astype(jnp.int32))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _encode_e4m3(x: Array) -> Array:
    """Bytes of float32 in [-448, 448], ties to even. Below 2**-6 codes count steps of 2**-9."""
    magnitude = _bits(x) & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    small = _bits(lax.bitcast_convert_type(magnitude, jnp.float32) + 16384.0) - 0x46800000
    code = jnp.where(magnitude < 0x3C800000, small, normal)
    return (code | ((_bits(x) >> 24) & 0x80)).astype(jnp.uint8)


def _encode_e2m1(x: Array) -> Array:
    """Codes 0..15 of float32 in [-6, 6], ties to even."""
    a = jnp.abs(x)
    above = (0.25, 1.25, 2.5, 5.0)
    least = (0.75, 1.75, 3.5)
    code = sum((a > edge).astype(jnp.int32) for edge in above) + sum((a >= edge).astype(jnp.int32) for edge in least)
    return (code | ((_bits(x) >> 28) & 8)).astype(jnp.uint8)


def quantize(x: Array, activation: str) -> tuple[Array, Array]:
    """Codes and scales of float32 `x[n, features]`: bytes, and ue8m0 bytes; int8 and float32 for "int8_token"."""
    if activation == "int8_token":
        amax = jnp.maximum(jnp.max(jnp.abs(x), -1, keepdims=True), INT8_FLOOR)
        finite = jnp.isfinite(jnp.sum(jnp.where(jnp.isfinite(x), 0.0, jnp.nan), -1, keepdims=True))
        scale = jnp.where(finite, amax / np.float32(127), jnp.nan)
        codes = jnp.where(finite, jnp.round(x / scale), 0.0)
        return codes.astype(jnp.int8), scale
    element, block = activation.split("_")[0], BLOCK[activation]
    split = _split(x, block)
    top = jnp.max(_bits(split) & 0x7FFFFFFF, -1, keepdims=True)
    finite = top < 0x7F800000
    wanted = jnp.maximum(lax.bitcast_convert_type(top, jnp.float32), FLOOR[element])
    bits = _bits(wanted * np.float32(1 / LARGEST[element]))
    scale = jnp.where(finite, (bits >> 23) + ((bits & 0x7FFFFF) != 0), 255)
    inverse = lax.bitcast_convert_type(jnp.maximum(254 - scale, 1) << 23, jnp.float32)
    values = split * inverse
    if element == "e4m3":
        codes = jnp.where(finite, _encode_e4m3(values), 0x7F).reshape(x.shape[0], -1)[:, : x.shape[1]]
    else:
        nibbles = jnp.where(finite, _encode_e2m1(values), 0).reshape(x.shape[0], -1)[:, : x.shape[1]]
        codes = nibbles[:, ::2] | (nibbles[:, 1::2] << 4)
    return codes.astype(jnp.uint8), scale[..., 0].astype(jnp.uint8)


def dequantize(codes: Array, scales: Array | None, activation: str) -> Array:
    """float32 `[n, features]` of what `quantize` gives; values as they are for "none"."""
    if activation == "none" or scales is None:
        return codes.astype(jnp.float32)
    if activation == "int8_token":
        return codes.astype(jnp.float32) * scales
    values = decode_e2m1(codes) if activation == "e2m1_32" else decode_e4m3(codes)
    return _scaled(values, power(scales), BLOCK[activation])


def simulate(x: Array, activation: str) -> Array:
    """float32 `x` through a quantiser and back."""
    return x if activation == "none" else dequantize(*quantize(x, activation), activation)


def _split(x: Array, block: int) -> Array:
    missing = -x.shape[-1] % block
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], -1, block)


def _scaled(values: Array, scales: Array, block: int) -> Array:
    return (_split(values, block) * scales[..., None]).reshape(*values.shape[:-1], -1)[..., : values.shape[-1]]


def matrix(codes: Array, scales: Array | None, scheme: str) -> Array:
    """float32 `[outputs, features]` of one packed weight."""
    if scales is None:
        return codes.astype(jnp.float32)
    if scales.dtype == jnp.uint8:
        scales = power(scales)
    if scheme == "fp8_block128":
        tall = jnp.repeat(scales, 128, 0)[: codes.shape[0]]
        return _scaled(decode_e4m3(codes), tall, 128)
    values = decode_e2m1(codes) if scheme == "mxfp4" else decode_e4m3(codes)
    return _scaled(values, scales, 32)
