"""The hooks: what hal asks of this backend. Importing this imports neither torch nor jax."""

from __future__ import annotations

from hal.kernel import Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
from hal_jax.kernels import kernels
from hal_jax.layouts import CACHES, INDEX, WEIGHTS
from hal_jax.target import present


@hookimpl
def hal_backend() -> Backend:
    return Backend(name="jax", distribution="hal-jax", device_type="cpu", api="1.0")


@hookimpl
def hal_targets() -> list[Target]:
    return present()


@hookimpl
def hal_kernels(target: Target) -> list[Kernel]:
    return kernels(target)


@hookimpl
def hal_layouts(target: Target) -> list[str]:
    return list(dict.fromkeys((*CACHES, *INDEX, *WEIGHTS)))
