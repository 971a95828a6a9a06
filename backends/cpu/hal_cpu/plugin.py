"""The hooks of hal-cpu."""

from __future__ import annotations

from hal.kernel import Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
from hal_cpu import kernels, layouts, target


@hookimpl
def hal_backend() -> Backend:
    """This distribution."""
    return Backend("cpu", "hal-cpu", "cpu", api="1.0")


@hookimpl
def hal_targets() -> list[Target]:
    """The CPU that is here."""
    return [target.target()]


@hookimpl
def hal_kernels(target: Target) -> list[Kernel]:
    """All kernels; none needs a feature of the CPU."""
    return list(kernels.KERNELS)


@hookimpl
def hal_layouts(target: Target) -> list[str]:
    """What kernels read and write."""
    return [*layouts.CACHES, *layouts.INDEX, *layouts.WEIGHTS]
