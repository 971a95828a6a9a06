"""The Triton kernels of this backend, compiled for a chip: `hal compile cuda`.

What is compiled is what is launched. The kernels' own functions run on the conformance suite's samples with launches
noted instead of run, once as they are and once as if every product had many rows; equal specialisations are compiled
once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from unittest import mock

import torch
import triton
from hal_triton import experts, matmul
from hal_triton.launch import Launch, recording
from triton.backends.compiler import GPUTarget

from hal.conformance.cases import eligible
from hal.conformance.samples import samples
from hal.errors import NoDevice
from hal.kernel import Compiled
from hal.target import Target
from hal_cuda.kernels import TRITON
from hal_cuda.toolchain import CHIPS, Chip, Machine, Source, build

__all__ = ["compiled", "launches", "specialised"]

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
WORKERS = 2

Key = tuple[Any, ...]


@dataclass
class _Wanted:
    source: Source
    entry: str
    values: str
    serves: dict[str, None]

    @property
    def name(self) -> str:
        return str(self.source.function.__name__).removesuffix("_kernel")


class _Driver:
    """The driver of a chip that is described and not here."""

    binary_ext = ""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target


def compiled(target: Target, pattern: str = "*") -> Iterator[Compiled]:
    """Every specialisation on a chip that fits the pattern, in the order of the kernels."""
    global _wanted
    chip = chip_of(target)
    _wanted = [
        one for one in launches(target).values() if any(fnmatchcase(w, pattern) for w in (one.name, *one.serves))
    ]
    context = multiprocessing.get_context("fork")  # kernels and noted launches are inherited, they cannot be pickled
    with context.Pool(WORKERS) as pool:
        for number, (machine, error) in enumerate(pool.imap(_build, ((chip, n) for n in range(len(_wanted))))):
            one = _wanted[number]
            facts = {} if machine is None else _facts(machine, chip)
            fault = error or _fault(machine, chip)
            yield Compiled(target.name, one.name, tuple(one.serves), one.entry, one.values, facts, fault)


_wanted: list[_Wanted] = []


def chip_of(target: Target) -> Chip:
    """The architecture that a described target is compiled for.

    Raises:
        NoDevice: its limits are not known here.
    """
    name = target.name.partition(":")[2]
    if name not in CHIPS:
        raise NoDevice(f"cannot compile for {target.name}", where="hal-cuda", fix=f"take one of {', '.join(CHIPS)}")
    return CHIPS[name]


def _build(task: tuple[Chip, int]) -> tuple[Machine | None, str]:
    chip, number = task
    try:
        return build(_wanted[number].source, chip), ""
    except Exception as error:  # the compiler has many
        return None, f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"


def launches(target: Target) -> dict[Key, _Wanted]:
    """Every specialisation that the kernels launch on a chip, and which of them launch it."""
    found: dict[Key, _Wanted] = {}
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Driver(chip_of(target).target))
    try:
        for kernel in TRITON:
            for few in (matmul.FEW_ROWS, 0):
                for launch in _noted(kernel, target, few):
                    key, source, values = specialised(launch)
                    found.setdefault(key, _Wanted(source, launch.config.entry, values, {})).serves[kernel.id] = None
    finally:
        triton.runtime.driver.set_active(before)
    return found


def _noted(kernel: Any, target: Target, few: int) -> list[Launch]:
    function = kernel.load()
    with (
        mock.patch.object(matmul, "FEW_ROWS", few),
        mock.patch.object(experts, "FEW_ROWS", few),
        recording() as noted,
        torch.no_grad(),
    ):
        for sample in samples(kernel.contract):
            if eligible(kernel, sample.call, target):
                function(*sample.arguments(), **sample.attributes)
    return noted


def specialised(launch: Launch) -> tuple[Key, Source, str]:
    """What Triton would compile for a launch: types, alignment by 16, and which numbers are 1."""
    names = launch.kernel.arg_names
    given = dict(zip(names, launch.arguments, strict=False)) | launch.constants
    compile_time = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    arguments = {name: (given[name],) if name in compile_time else _type(given[name]) for name in names}
    source = Source(launch.kernel, arguments, launch.config.warps, launch.config.stages)
    values = ", ".join(f"{name}={given[name]}" for name in names if name in compile_time)
    key = (launch.kernel.__name__, launch.config.entry, *((n, str(v)) for n, v in arguments.items()))
    return key, source, values


def _type(value: Any) -> str | tuple[Any]:
    """A run-time argument's type as Triton writes it, or a value that it compiles in."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}" + (":16" if value.data_ptr() % 16 == 0 else "")
    if value is None or (type(value) is int and value == 1):
        return (value,)
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        kind = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
        return kind + (":16" if value % 16 == 0 else "")
    return "fp32"


def _facts(machine: Machine, chip: Chip) -> dict[str, Any]:
    return {
        "registers": machine.registers,
        "spilled": machine.spilled,
        "shared KiB": -(-machine.shared // 1024),
        "occupancy": machine.occupancy(chip),
        "matrix": " ".join(machine.matrix),
    }


def _fault(machine: Machine | None, chip: Chip) -> str:
    if machine is None:
        return ""
    if machine.spilled:
        return f"{machine.spilled} bytes are spilled"
    if machine.shared > chip.shared * 1024:
        return f"{machine.shared} bytes of shared memory, the chip has {chip.shared} KiB"
    if machine.missing:
        return f"it multiplies {', '.join(machine.missing)} operands and uses no matrix unit that does"
    return ""
