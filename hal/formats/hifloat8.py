"""HiFloat8 (HiF8): Huawei's 8-bit float whose exponent field grows and whose mantissa shrinks away from 1.

Definition: Luo et al., "Ascend HiFloat8 Format for Deep Learning", arXiv 2409.16626, tables 1-4. A sign bit, a prefix
code ("dot") that says how wide the exponent is, a sign-magnitude exponent with an implicit leading one, a mantissa:

| dot    | exponent bits | exponents     | mantissa bits |
|--------|---------------|---------------|---------------|
| `0000` | none          | -22 .. -16    | value is 2^(m-23) for m in 1..7; m = 0 is zero (sign 0) or NaN (sign 1) |
| `0001` | none          | 0             | 3 |
| `001`  | 1             | -1, 1         | 3 |
| `01`   | 2             | -3, -2, 2, 3  | 3 |
| `10`   | 3             | -7..-4, 4..7  | 2 |
| `11`   | 4             | -15..-8, 8..15| 1; 1.5 * 2^15 is infinity instead |

Conversion rounds to nearest, ties away from zero ("TA"), to infinity from 1.25 * 2^15 on, to zero below 2^-23.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["decode", "encode", "round"]

_DOTS = ((0b11, 2, 4), (0b10, 2, 3), (0b01, 2, 2), (0b001, 3, 1), (0b0001, 4, 0))  # prefix, its width, exponent bits


def _magnitude(code: int) -> float:
    """Value of a code without its sign bit."""
    if code == 0b1101111:
        return float("inf")
    for prefix, width, exponent_bits in _DOTS:
        if code >> (7 - width) == prefix:
            mantissa_bits = 7 - width - exponent_bits
            field = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
            exponent = 0
            if exponent_bits:
                top = 1 << (exponent_bits - 1)
                exponent = top | (field & (top - 1))
                exponent = -exponent if field & top else exponent
            mantissa = code & ((1 << mantissa_bits) - 1)
            return float((1 + mantissa / (1 << mantissa_bits)) * 2.0**exponent)
    return 2.0 ** (code - 23) if code else 0.0


@lru_cache(maxsize=8)
def _values(device: torch.device) -> Tensor:
    """Values of all 256 codes."""
    magnitudes = torch.tensor([_magnitude(code) for code in range(128)], device=device)
    values = torch.cat([magnitudes, -magnitudes])
    values[0x80] = float("nan")
    return values


@lru_cache(maxsize=8)
def _rungs(device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes of the magnitudes in rising order, and where each rounds up to the next."""
    magnitudes, codes = _values(device)[:128].sort()
    bounds = (magnitudes[:-1] + magnitudes[1:]) / 2
    bounds[-1] = 1.25 * 2.0**15
    return codes.to(torch.uint8), bounds


def encode(v: Tensor) -> Tensor:
    """Codes, uint8, of float32 values."""
    codes, bounds = _rungs(v.device)
    magnitude = codes[torch.bucketize(v.abs(), bounds, right=True)]
    negative = (torch.signbit(v) & (magnitude != 0)).to(torch.uint8) << 7
    return torch.where(v.isnan(), 0x80, magnitude | negative).to(torch.uint8)


def decode(codes: Tensor) -> Tensor:
    """float32 values of codes."""
    return _values(codes.device)[codes.to(torch.int32)]


def round(v: Tensor) -> Tensor:
    """float32 values on the format's grid."""
    return decode(encode(v))
