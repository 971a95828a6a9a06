"""The Triton kernels of this backend, compiled for a chip: `hal compile ascend`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from hal_triton import compiling
from hal_triton.compiling import Source, launches

from hal.kernel import Compiled
from hal.target import Target
from hal_ascend.toolchain import SOC, Machine, build, compiler
from hal_ascend.triton import triton_kernels

__all__ = ["compiled", "fault_of"]


def compiled(target: Target, pattern: str = "*") -> Iterator[Compiled]:
    """Every specialisation on a chip that fits the pattern, in the order of the kernels; none on an old chip (310P).

    Raises:
        NotInstalled: Ascend's Triton or its compiler is not in this environment.
    """
    chip = target.name.partition(":")[2]
    if chip not in SOC:
        return iter(())
    compiler(chip)
    wanted = launches(triton_kernels(target), target, "a5" if chip == "a5" else "a2")
    return compiling.compiled(target, wanted.values(), partial(_make, chip=chip), pattern)


def _make(source: Source, chip: str) -> tuple[dict[str, Any], str]:
    machine = build(source, chip)
    memory = {name: -(-size // 1024) for name, size in machine.used.items()}
    given_up = " ".join(word.removeprefix("enable-") for word in machine.retries)
    facts = {"cores": machine.cores, **memory, "products": " ".join(machine.products), "given up": given_up}
    return facts, fault_of(machine)


def fault_of(machine: Machine) -> str:
    """What is wrong with a plan, in words; nothing where all is well."""
    for name, size in machine.used.items():
        if size > machine.limit[name]:
            return f"{size} bytes of {name.removesuffix(' KiB')}, the chip has {machine.limit[name]}"
    if machine.asked and not machine.products:
        return "it multiplies matrices and uses no cube"
    return ""
