"""Switches of an emulated device that tests turn: what runs, what goes to the host, what has no kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["as_host", "clear", "log", "trips", "without_kernel"]


def as_host(tensor: Tensor) -> Tensor:
    """A CPU tensor over the same bytes: what a vendor operator's stand-in computes on."""
    return torch.ops.hal_device.as_host(tensor)


@contextmanager
def log() -> Iterator[dict[str, int]]:
    """Inside the block operators are counted; the dictionary is filled when it ends."""
    counts: dict[str, int] = {}
    torch.ops.hal_device.log_operators(True)
    try:
        yield counts
    finally:
        torch.ops.hal_device.log_operators(False)
        counts.update(_counts(torch.ops.hal_device.operators()))


def trips() -> dict[str, int]:
    """Operators that ran on the host since `clear`, and copies and single values that went there."""
    return _counts(torch.ops.hal_device.host_trips())


def clear() -> None:
    """Count host trips from zero again."""
    torch.ops.hal_device.clear_host_trips()


@contextmanager
def without_kernel(names: Iterable[str], *, strict: bool) -> Iterator[None]:
    """Inside the block operators ("aten::add") have no kernel on the device: an error if strict, else a host trip."""
    torch.ops.hal_device.without_kernel(list(names), strict)
    try:
        yield
    finally:
        torch.ops.hal_device.without_kernel([], False)


def _counts(lines: list[str]) -> dict[str, int]:
    return {name: int(times) for name, _, times in (line.rpartition(" ") for line in lines)}
