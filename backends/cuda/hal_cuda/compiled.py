"""The Triton kernels of this backend, compiled for a chip: `hal compile cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from hal_triton import compiling
from hal_triton.compiling import Source, launches

from hal.kernel import Compiled
from hal.target import Target
from hal_cuda.kernels import TRITON
from hal_cuda.toolchain import CHIPS, Chip, Machine, build

__all__ = ["compiled", "fault_of", "wanted"]


def compiled(target: Target, pattern: str = "*") -> Iterator[Compiled]:
    """Every specialisation on a chip that fits the pattern, in the order of the kernels."""
    name = _name(target)
    return compiling.compiled(target, wanted(target).values(), partial(_make, chip=CHIPS[name]), pattern)


def wanted(target: Target) -> dict[compiling.Key, compiling.Wanted]:
    """Every specialisation that the kernels launch on a chip, and which of them launch it."""
    return launches(TRITON, target, _name(target))


def _name(target: Target) -> str:
    return target.name.partition(":")[2]


def _make(source: Source, chip: Chip) -> tuple[dict[str, Any], str]:
    machine = build(source, chip)
    facts = {
        "registers": machine.registers,
        "spilled": machine.spilled,
        "shared KiB": -(-machine.shared // 1024),
        "occupancy": machine.occupancy(chip),
        "matrix": " ".join(machine.matrix),
    }
    return facts, fault_of(machine, chip)


def fault_of(machine: Machine, chip: Chip) -> str:
    """What is wrong with machine code on a chip, in words; nothing where all is well."""
    if machine.spilled:
        return f"{machine.spilled} bytes are spilled"
    if machine.shared > chip.shared * 1024:
        return f"{machine.shared} bytes of shared memory, the chip has {chip.shared} KiB"
    if machine.missing:
        return f"it multiplies {', '.join(machine.missing)} operands and uses no matrix unit that does"
    return ""
