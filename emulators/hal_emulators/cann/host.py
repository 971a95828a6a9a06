"""What went to the host: copies that the runtime made, and operators whose result's shape only values tell."""

from __future__ import annotations

import ctypes as C
from collections import Counter

__all__ = ["clear", "told", "trips"]

_told: Counter[str] = Counter()
_cleared = [0]


def told(operator: str) -> None:
    """An operator returned a shape, or a number, that a device would have had to tell the host."""
    _told[operator] += 1


def trips() -> dict[str, int]:
    """Since `clear`: such operators, and "copy to host", as which single values arrive too."""
    copies = _copies() - _cleared[0]
    return {**_told, **({"copy to host": copies} if copies else {})}


def clear() -> None:
    """Count from zero again."""
    _told.clear()
    _cleared[0] = _copies()


def _copies() -> int:
    runtime = C.CDLL("libascendcl.so")  # loaded already
    runtime.hal_cann_copies_to_host.restype = C.c_uint64
    return int(runtime.hal_cann_copies_to_host())
