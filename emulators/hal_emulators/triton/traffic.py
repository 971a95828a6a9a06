"""How many bytes interpreted kernels move.

    with traffic.count() as ledger:
        hal_kernel(...)
    ledger.moved, ledger.requested

Two numbers matter for a roofline. `requested` is what all programs load and store together: what the caches must
deliver. `moved` counts each 32-byte sector once per launch: what memory must deliver if the cache holds what a launch
reuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECTOR = 32
"""Bytes that memory delivers at once on every current NVIDIA chip."""


@dataclass
class KernelTraffic:
    """What the launches of one kernel requested and moved, in bytes."""

    launches: int = 0
    loaded: int = 0
    stored: int = 0
    read: int = 0
    written: int = 0


@dataclass
class Ledger:
    """Bytes per kernel name."""

    kernels: dict[str, KernelTraffic] = field(default_factory=dict)
    _sectors: dict[tuple[str, int], NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    _running: str = ""

    @property
    def requested(self) -> int:
        """Bytes loaded and stored by all programs together."""
        return sum(kernel.loaded + kernel.stored for kernel in self.kernels.values())

    @property
    def moved(self) -> int:
        """Bytes of distinct sectors read plus those of distinct sectors written, summed over launches."""
        return sum(kernel.read + kernel.written for kernel in self.kernels.values())

    def settle(self) -> None:
        """Add the sectors of the launch that just ended to its kernel."""
        for (direction, _), touched in self._sectors.items():
            kernel = self.kernels[self._running]
            setattr(kernel, direction, getattr(kernel, direction) + int(touched.sum()) * SECTOR)
        self._sectors.clear()

    def note(self, start: int, size: int, addresses: NDArray[Any], width: int, kind: str) -> None:
        kernel = self.kernels[self._running]
        if kind != "store":
            kernel.loaded += addresses.size * width
        if kind != "load":
            kernel.stored += addresses.size * width
        origin = start // SECTOR
        for direction in {"load": ("read",), "store": ("written",), "atomic": ("read", "written")}[kind]:
            touched = self._sectors.get((direction, start))
            if touched is None:
                touched = self._sectors[direction, start] = np.zeros((start + size) // SECTOR - origin + 1, bool)
            touched[addresses // SECTOR - origin] = True
            touched[(addresses + width - 1) // SECTOR - origin] = True


_open: list[Ledger] = []


@contextmanager
def count() -> Iterator[Ledger]:
    """Count the bytes of every kernel interpreted inside the block."""
    ledger = Ledger()
    _open.append(ledger)
    try:
        yield ledger
    finally:
        ledger.settle()
        _open.remove(ledger)


def begin(kernel: str) -> None:
    """A launch of `kernel` starts."""
    for ledger in _open:
        ledger.settle()
        ledger._running = kernel
        ledger.kernels.setdefault(kernel, KernelTraffic()).launches += 1


def record(start: int, size: int, addresses: NDArray[Any], width: int, kind: str) -> None:
    """One access of the running launch to the storage of `size` bytes at `start`."""
    for ledger in _open:
        ledger.note(start, size, addresses, width, kind)
