"""Element formats: the grid each one rounds to, its codes, and the values the codes stand for. Exact to the bit.

Sources: OCP 8-bit Floating Point Specification (e4m3), OCP Microscaling Formats v1.0 (e2m1, e8m0), and for HiFloat8
`hal.formats.hifloat8`. Rounding is to nearest, ties to even, except HiFloat8's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hal.formats import hifloat8

__all__ = ["ELEMENTS", "Element", "ceil_ue8m0", "pack_nibbles", "unpack_nibbles"]

_EXPONENT, _MANTISSA, _SIGN = 0x7F800000, 0x007FFFFF, -0x80000000  # fields of float32
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_E2M1_CODES = (0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7)  # of a magnitude, by twice the magnitude
_INT4 = (*range(8), *range(-8, 0))


@dataclass(frozen=True)
class Element:
    """A format of single numbers, in units of the scale of their block.

    Attributes:
        largest: magnitude that the largest value of a block is scaled to, at most.
        round: float32 values of magnitude up to `largest` (and float32 rounding) -> the same on the format's grid. NaN
            stays NaN.
        encode: float32 values on the grid -> codes, bit for bit. A format without a NaN code encodes it as 0: the scale
            of its block is NaN then.
        decode: codes -> float32 values.
        dtype: of the codes.
        packed: codes per byte; of two, the low nibble comes first.
    """

    largest: float
    round: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    packed: int = 1


def ceil_ue8m0(x: Tensor) -> Tensor:
    """The smallest power of two that is no less than `x`, as a byte: its exponent plus 127.

    On the bits of float32, as the official inference code does: exact next to powers of two, where `ceil(log2(x))` is
    not. Infinity and NaN give 255, which stands for NaN; a subnormal gives 1, which stands for 2^-126.

    Args:
        x: float32, positive.

    Returns:
        float8_e8m0fnu of the same shape.
    """
    bits = x.view(torch.int32)
    code = (bits >> 23) + ((bits & _MANTISSA) != 0)
    return code.clamp_(max=255).to(torch.uint8).view(torch.float8_e8m0fnu)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two 4-bit codes a byte, the one with the even index in the low nibble: uint8 [.., n] -> uint8 [.., n / 2]."""
    return (codes[..., 0::2] & 0xF) | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`: uint8 [.., n] -> uint8 [.., 2 n], each below 16."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)


def _round_float(v: Tensor, mantissa: int, least: int) -> Tensor:
    """Round to `mantissa` stored bits; below 2^`least`, to the spacing of that binade.

    The sum with 1.5 * 2^k leaves float32 room for just the wanted bits, and rounds to them, ties to even. The sign is
    copied as a bit: torch_npu has no copysign.
    """
    bits = v.view(torch.int32) & _EXPONENT
    bits.clamp_(min=(least + 127) << 23).add_(((23 - mantissa) << 23) | 0x400000)
    magic = bits.view(torch.float32)
    rounded = (v + magic).sub_(magic).view(torch.int32) & ~_SIGN
    return rounded.bitwise_or_(v.view(torch.int32) & _SIGN).view(torch.float32)


def _encode_e2m1(v: Tensor) -> Tensor:
    doubled = v.abs().nan_to_num(0.0).mul_(2).to(torch.int32)
    magnitude = _table(_E2M1_CODES, torch.uint8, v.device)[doubled]
    return pack_nibbles(magnitude | (torch.signbit(v) & ~v.isnan()).to(torch.uint8) << 3)


def _round_integer(v: Tensor) -> Tensor:
    return v.round().add_(0.0)  # integers have no negative zero


def _encode_integer(v: Tensor) -> Tensor:
    return v.nan_to_num(0.0).to(torch.int8)


def _decode_e4m3(codes: Tensor) -> Tensor:
    """By table: on CPUs several times faster than torch's conversion."""
    flat = codes.contiguous().view(torch.uint8).view(-1).to(torch.int32)
    return _e4m3(codes.device).index_select(0, flat).view(codes.shape)


def _decode_pairs(packed: Tensor, table: tuple[float, ...]) -> Tensor:
    """Values of two nibbles at a time, by their byte; a pair travels as one int64."""
    flat = packed.reshape(-1).to(torch.int32)
    values = _pairs(table, packed.device).index_select(0, flat).view(torch.float32)
    return values.view(*packed.shape[:-1], 2 * packed.shape[-1])


@lru_cache(maxsize=64)
def _e4m3(device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).to(device)


@lru_cache(maxsize=64)
def _pairs(table: tuple[float, ...], device: torch.device) -> Tensor:
    pairs = [[low, high] for high in table for low in table]
    return torch.tensor(pairs, dtype=torch.float32, device=device).view(torch.int64).view(-1)


@lru_cache(maxsize=64)
def _table(values: tuple[object, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


ELEMENTS = {
    "e4m3": Element(
        448.0,
        lambda v: _round_float(v, 3, -6),
        lambda v: v.to(torch.float8_e4m3fn),
        _decode_e4m3,
        torch.float8_e4m3fn,
    ),
    "e2m1": Element(
        6.0,
        lambda v: _round_float(v, 1, 0),
        _encode_e2m1,
        lambda codes: _decode_pairs(codes, _E2M1),
        torch.uint8,
        packed=2,
    ),
    "int8": Element(127.0, _round_integer, _encode_integer, lambda codes: codes.to(torch.float32), torch.int8),
    "int4": Element(
        7.0,
        _round_integer,
        lambda v: pack_nibbles(_encode_integer(v).view(torch.uint8)),
        lambda codes: _decode_pairs(codes, _INT4),
        torch.uint8,
        packed=2,
    ),
    "hif8": Element(15.0, hifloat8.round, hifloat8.encode, hifloat8.decode, torch.uint8),
}
"""By name: `e4m3` and `e2m1` as scaled by DeepSeek-V4; `int8`, `int4` symmetric, without the lowest code; `hif8` scaled
to the magnitudes where HiFloat8 keeps three mantissa bits."""
