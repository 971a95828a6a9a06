"""What HiFloat8 codes stand for, from its definition (arXiv 2409.16626, section 3): sign, prefix, exponent, mantissa.

| prefix | exponent bits | mantissa bits |
|---|---|---|
| 11 | 4 | 1 |
| 10 | 3 | 2 |
| 01 | 2 | 3 |
| 001 | 1 | 3 |
| 0001 | 0 | 3 |
| 0000 | none: 2^(m - 23) for the three bits m, zero for 0 | |

An exponent has a sign bit and a hidden leading one: with two bits it is +-2 or +-3. The largest magnitude is infinity,
the negative zero is NaN.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

__all__ = ["decoded"]


def decoded(codes: Tensor) -> Tensor:
    """float32 values of uint8 codes."""
    return torch.tensor(_table(), dtype=torch.float32)[codes.long()]


@cache
def _table() -> tuple[float, ...]:
    return tuple(_value(code) for code in range(256))


def _value(code: int) -> float:
    bits = f"{code:08b}"
    sign, rest = -1.0 if bits[0] == "1" else 1.0, bits[1:]
    for prefix, width in (("11", 4), ("10", 3), ("01", 2), ("001", 1), ("0001", 0)):
        if rest.startswith(prefix):
            exponent, mantissa = rest[len(prefix) : len(prefix) + width], rest[len(prefix) + width :]
            power = int("1" + exponent[1:], 2) * (-1 if exponent[0] == "1" else 1) if width else 0
            if power == 15 and mantissa == "1":
                return sign * math.inf
            return sign * 2.0**power * (1 + int(mantissa, 2) / 2 ** len(mantissa))
    least = int(rest[4:], 2)
    if not least:
        return 0.0 if sign > 0 else math.nan
    return sign * 2.0 ** (least - 23)
