"""What a compiler without a chip is given: every launch that kernels make, once per specialisation.

What is compiled is what is launched. The kernels' own functions run on the conformance suite's samples with launches
noted instead of run, once as they are and once as if every product had many rows and every request many entries.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from unittest import mock

import torch

from hal.conformance.cases import eligible
from hal.conformance.samples import samples
from hal.kernel import Compiled, Kernel
from hal.target import Target
from hal_triton import compression, experts, matmul, selection
from hal_triton.launch import Launch, recording
from hal_triton.tuning import stand_in

__all__ = ["Source", "Wanted", "compiled", "launches", "specialised"]

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
ENTRIES = 1 << 16
"""Entries of a long request: they are chosen from in several rounds."""

Key = tuple[Any, ...]
Made = tuple[Mapping[str, Any], str]
"""Facts about machine code, and what is wrong with it or nothing."""


@dataclass(frozen=True)
class Source:
    """One specialisation of a kernel.

    `arguments` gives each parameter its Triton type ("*bf16", "i32", ...; a trailing ":16" promises divisibility by
    16), or, in a tuple of one, its compile-time value.
    """

    function: Any
    arguments: dict[str, str | tuple[Any]]
    warps: int
    stages: int

    def split(self) -> tuple[dict[str, str], dict[str, Any], dict[int, int]]:
        """Types by parameter ("constexpr" for the others), values of the others, and divisors by position."""
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        divisors: dict[int, int] = {}
        for index, (name, value) in enumerate(self.arguments.items()):
            if isinstance(value, tuple):
                signature[name], constants[name] = "constexpr", value[0]
                continue
            signature[name], _, divisor = value.partition(":")
            if divisor:
                divisors[index] = int(divisor)
        return signature, constants, divisors


@dataclass
class Wanted:
    """A specialisation, the configuration it is of, and the kernels that launch it."""

    source: Source
    entry: str
    values: str
    serves: dict[str, None]

    @property
    def name(self) -> str:
        return str(self.source.function.__name__).removesuffix("_kernel")


def launches(kernels: Iterable[Kernel], target: Target, chip: str) -> dict[Key, Wanted]:
    """Every specialisation that kernels launch on a chip, which `tuning.toml` calls `chip`."""
    found: dict[Key, Wanted] = {}
    with stand_in(chip):
        for kernel in kernels:
            for few in (matmul.FEW_ROWS, 0):
                for launch in _noted(kernel, target, few):
                    key, source, values = specialised(launch)
                    found.setdefault(key, Wanted(source, launch.config.entry, values, {})).serves[kernel.id] = None
    return found


def _noted(kernel: Kernel, target: Target, few: int) -> list[Launch]:
    function = kernel.load()
    with (
        nullcontext() if few else mock.patch.object(selection, "widest", return_value=ENTRIES),
        mock.patch.object(compression, "FEW_ROWS", few),
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


def compiled(
    target: Target, wanted: Iterable[Wanted], make: Callable[[Source], Made], pattern: str = "*"
) -> Iterator[Compiled]:
    """What `make` says of each specialisation that fits a pattern, in order, by as many processes as are worth it."""
    global _work
    fitting = [one for one in wanted if any(fnmatchcase(word, pattern) for word in (one.name, *one.serves))]
    _work = [one.source for one in fitting], make
    context = multiprocessing.get_context("fork")  # kernels and noted launches are inherited, they cannot be pickled
    with context.Pool(WORKERS) as pool:
        for one, (facts, fault) in zip(fitting, pool.imap(_made, range(len(fitting))), strict=True):
            yield Compiled(target.name, one.name, tuple(one.serves), one.entry, one.values, dict(facts), fault)


_work: tuple[list[Source], Callable[[Source], Made]] = [], lambda source: ({}, "")


def _made(number: int) -> Made:
    sources, make = _work
    try:
        return make(sources[number])
    except Exception as error:  # compilers have many
        return {}, f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
