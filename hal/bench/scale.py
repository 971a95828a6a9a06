"""How large the calls of `hal bench kernels` are. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How large the calls are.

    Attributes:
        decode, prefill: tokens of a call of each kind.
        context: tokens behind a decoded one.
        hidden, inter, experts: of a layer of experts; V4-Flash has 4096, 2048 and 256.
    """

    decode: int = 16
    prefill: int = 2048
    context: int = 65536
    hidden: int = 4096
    inter: int = 2048
    experts: int = 32


V4 = Scale()
"""32 experts: what one of 8 chips holds."""
INTERPRETED = Scale(decode=4, prefill=128, context=4096, hidden=1024, inter=512, experts=8)
"""Seconds, not hours, in an interpreter."""
