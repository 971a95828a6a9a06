"""Copies, fills and storage formats.

CANN operator library: aclnnInplaceCopy, aclnnCast, aclnnInplaceZero, aclnnInplaceFillScalar, aclnnNpuFormatCast.
"""

from __future__ import annotations

from hal_emulators.cann.abi import Argument
from hal_emulators.cann.calls import kernel


@kernel("TT", "aclnnInplaceCopy")
def copy(to: Argument, source: Argument) -> None:
    to.memory.copy_(source.values())


@kernel("TjT", "aclnnCast")
def cast(x: Argument, dtype: int, out: Argument) -> None:
    out.memory.copy_(x.values())


@kernel("T", "aclnnInplaceZero")
def zero(x: Argument) -> None:
    x.memory.zero_()


@kernel("TS", "aclnnInplaceFillScalar")
def fill(x: Argument, value: float) -> None:
    x.memory.fill_(value)


@kernel("TT", "aclnnNpuFormatCast")
def format_cast(x: Argument, out: Argument) -> None:
    """Between rows and FRACTAL_NZ; the logical values stay as they are."""
    out.store(x.values())
