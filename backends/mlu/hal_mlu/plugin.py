"""The hooks: what hal asks of this backend. Importing this imports neither torch nor torch_mlu."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hal.kernel import Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
from hal_mlu.host import watched
from hal_mlu.kernels import kernels
from hal_mlu.layouts import CACHES, INDEX, WEIGHTS
from hal_mlu.target import cards_here


@hookimpl
def hal_backend() -> Backend:
    return Backend(name="mlu", distribution="hal-mlu", device_type="mlu", api="1.0")


@hookimpl
def hal_targets() -> list[Target]:
    return cards_here()


@hookimpl
def hal_kernels(target: Target) -> list[Kernel]:
    return kernels(target)


@hookimpl
def hal_watch_host(target: Target) -> AbstractContextManager[list[str]]:
    return watched()


@hookimpl
def hal_layouts(target: Target) -> list[str]:
    return list(dict.fromkeys((*CACHES, *INDEX, *WEIGHTS)))
