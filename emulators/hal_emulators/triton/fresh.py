"""Memory that nobody has written yet.

While the emulator is active, `torch.empty` and its relatives return poisoned memory: NaN in floating tensors, 0xA5
bytes elsewhere. The bytes that interpreted kernels write are noted, so a kernel that reads a byte of such a tensor
before any kernel or torch operator wrote it is an error, and `unwritten` counts what a kernel left out of its output.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

KEEP = 4096
"""How many allocations are remembered; the oldest is forgotten first."""


@dataclass
class Allocation:
    """One poisoned storage: its bytes, and which of them kernels have written."""

    memory: NDArray[np.uint8]
    poison: int
    written: NDArray[np.bool_]

    def untouched(self) -> bool:
        """Whether everything that kernels did not write still holds the poison, so torch did not write it either."""
        return bool((self.memory[~self.written] == self.poison).all())


allocations: OrderedDict[int, Allocation] = OrderedDict()


def _memory(address: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill a new host tensor's storage with the poison of its type and remember it."""
    if type(tensor) is not torch.Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return tensor
    storage = tensor.untyped_storage()
    address, size = storage.data_ptr(), storage.nbytes()
    if not address or not size or tensor.dtype == torch.bool:
        return tensor
    byte = 0xFF if tensor.is_floating_point() else 0xA5
    memory = _memory(address, size)
    memory[:] = byte
    allocations[address] = Allocation(memory, byte, np.zeros(size, bool))
    allocations.move_to_end(address)
    if len(allocations) > KEEP:
        allocations.popitem(last=False)
    return tensor


def _find(address: int, size: int) -> Allocation | None:
    allocation = allocations.get(address)
    if allocation is not None and allocation.memory.size != size:
        del allocations[address]
        return None
    return allocation


def mark_written(address: int, size: int, first: NDArray[np.int64], width: int) -> None:
    """Note that a kernel wrote `width` bytes at each offset `first` of the storage of `size` bytes at `address`."""
    allocation = _find(address, size)
    if allocation is not None:
        for byte in range(width):
            allocation.written[first + byte] = True


def check_read(address: int, size: int, first: NDArray[np.int64], width: int, fail: Callable[[str], Exception]) -> None:
    """Raise `fail(...)` if a kernel reads a byte that nobody wrote."""
    allocation = _find(address, size)
    if allocation is None or allocation.written[first].all():
        return
    if allocation.untouched():
        missing = first[~allocation.written[first]]
        raise fail(f"load of {missing.size * width} bytes that nobody wrote, first at byte {int(missing[0])} of")
    del allocations[address]


def unwritten(tensor: torch.Tensor) -> int:
    """Bytes of a tensor from `torch.empty` that neither a kernel nor torch has written; 0 for any other tensor."""
    storage = tensor.untyped_storage()
    allocation = _find(storage.data_ptr(), storage.nbytes()) if storage.nbytes() else None
    if allocation is None or not allocation.untouched():
        return 0
    return int((~allocation.written).sum())


_originals: dict[tuple[Any, str], Any] = {}


def install() -> None:
    """Poison what torch allocates without initialising; harmless when repeated."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        if (owner, name) in _originals:
            continue
        original = _originals[owner, name] = getattr(owner, name)

        def poisoned(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            return poison(_original(*args, **kwargs))

        setattr(owner, name, poisoned)


def remove() -> None:
    """Give torch its own functions back and forget every allocation."""
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()
    allocations.clear()
