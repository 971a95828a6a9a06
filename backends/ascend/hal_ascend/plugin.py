"""The hooks: what hal asks of this backend. Importing this imports neither torch nor torch_npu."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from hal.kernel import Compiled, Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
from hal_ascend.kernels import kernels
from hal_ascend.layouts import PLAIN, WEIGHTS, chip_of
from hal_ascend.target import chips_here, watched
from hal_ascend.triton import triton_kernels


@hookimpl
def hal_backend() -> Backend:
    return Backend(name="ascend", distribution="hal-ascend", device_type="npu", api="1.0")


@hookimpl
def hal_targets() -> list[Target]:
    return chips_here()


@hookimpl
def hal_kernels(target: Target) -> list[Kernel]:
    return [*kernels(target), *triton_kernels(target)]


@hookimpl
def hal_layouts(target: Target) -> list[str]:
    chip = chip_of(target.name)
    rows = (*chip.all_caches, *chip.all_index, *chip.weights) if chip else (*PLAIN, *WEIGHTS)
    return list(dict.fromkeys(rows))


@hookimpl
def hal_watch_host(target: Target) -> AbstractContextManager[list[str]]:
    return watched()


@hookimpl
def hal_compile(target: Target, pattern: str) -> Iterator[Compiled]:
    from hal_ascend.compiled import compiled

    return compiled(target, pattern)
