"""The hooks of a backend. Six give data, one observes; none can wrap or replace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pluggy

from hal.kernel import Compiled, Kernel
from hal.target import Backend, Target

API = (1, 0)
PROJECT = "hal"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def hal_backend() -> Backend:  # type: ignore[empty-body]
    """Name, distribution and API version of this backend."""


@hookspec
def hal_targets() -> list[Target]:  # type: ignore[empty-body]
    """The chips that are here, best first."""


@hookspec
def hal_kernels(target: Target) -> list[Kernel]:  # type: ignore[empty-body]
    """Kernels for a target, best first."""


@hookspec
def hal_layouts(target: Target) -> list[str]:  # type: ignore[empty-body]
    """Cache layouts and weight schemes that a target computes with, best first."""


@hookspec
def hal_watch_host(target: Target) -> Any:
    """A context manager whose value is a list: names of operators that ran on the host, or for which it waited."""


@hookspec
def hal_compile(target: Target, pattern: str) -> Iterator[Compiled]:  # type: ignore[empty-body]
    """What a compiler makes of the kernels that fit a pattern, launch by launch, for a target that need not be here."""


@hookspec
def hal_event(event: dict[str, Any]) -> None:
    """Something happened (a plan was made, a kernel raised)."""
