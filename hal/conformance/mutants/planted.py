"""What a planted bug is, and how it becomes a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint
from types import FunctionType
from typing import Any

from hal import plugins
from hal.constraints import Constraint
from hal.hookspecs import hookimpl
from hal.kernel import Kernel
from hal.target import Backend, Target

__all__ = ["HOST", "Mutant", "Planted", "honest", "install"]

HOST: list[str] = []
"""Operators that planted kernels ran on the host."""


def honest(reference: str, **replaced: Any) -> Callable[..., Any]:
    """A copy of a reference function, some names it uses replaced. Not the function that kernels are compared with."""
    place, name = reference.split(":")
    original: FunctionType = getattr(import_module(place), name)
    copy = FunctionType(original.__code__, {**original.__globals__, **replaced}, name)
    copy.__kwdefaults__, copy.__defaults__ = original.__kwdefaults__, original.__defaults__
    return copy


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        code: `module:function` of the kernel.
        says: what is wrong with it.
        issue: where that happened, as a web address; empty for honest ones.
        flags: of the kernel's declaration.
    """

    contract: str
    code: str
    says: str
    issue: str = ""
    constraints: tuple[Constraint, ...] = ()
    flags: dict[str, bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its backend."""
        return "mutant-" + self.code.split(":")[1].strip("_").replace("_", "-")


class Planted:
    """The backend of one mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    @hookimpl
    def hal_backend(self) -> Backend:
        return Backend(self.mutant.name, "hal-accel", "cpu")

    @hookimpl
    def hal_targets(self) -> list[Target]:
        return [Target(self.mutant.name, "cpu")]

    @hookimpl
    def hal_kernels(self, target: Target) -> list[Kernel]:
        words, name = self.mutant, self.mutant.name.replace("-", ".", 1)
        return [Kernel(name, words.contract, words.code, words.constraints, **words.flags)]  # type: ignore[arg-type]

    @hookimpl
    def hal_layouts(self, target: Target) -> list[str]:
        return []

    @hookimpl
    def hal_watch_host(self, target: Target) -> Any:
        return _watching()


@contextmanager
def _watching() -> Iterator[list[str]]:
    HOST.clear()
    yield HOST


def install() -> None:
    """Register every mutant and every honest copy as a backend of this process."""
    from hal.conformance.mutants import catalogue

    for mutant in (*catalogue.MUTANTS, *catalogue.HONEST):
        value = f"hal.conformance.mutants.catalogue:BACKENDS.{mutant.name.replace('-', '_')}"
        plugins.EXTRA[mutant.name] = EntryPoint(mutant.name, value, plugins.GROUP)
