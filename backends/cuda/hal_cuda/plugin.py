"""The hooks: what hal asks of this backend. Importing this imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Iterator

from hal.kernel import Compiled, Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
from hal_cuda.adapters.declared import adapters
from hal_cuda.kernels import TRITON
from hal_cuda.layouts import CACHES, INDEX, WEIGHTS
from hal_cuda.target import present


@hookimpl
def hal_backend() -> Backend:
    return Backend(name="cuda", distribution="hal-cuda", device_type="cuda", api="1.0")


@hookimpl
def hal_targets() -> list[Target]:
    return present()


@hookimpl
def hal_kernels(target: Target) -> list[Kernel]:
    return [*adapters(target), *TRITON]


@hookimpl
def hal_layouts(target: Target) -> list[str]:
    return list(dict.fromkeys((*CACHES, *INDEX, *WEIGHTS)))


@hookimpl
def hal_compile(target: Target, pattern: str) -> Iterator[Compiled]:
    from hal_cuda.compiled import compiled

    return compiled(target, pattern)
