"""A law, and how a contract's laws are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from hal import ops
from hal.conformance.samples import Sample
from hal.conformance.trial import Subject
from hal.kernel import Kernel

__all__ = ["Law", "laws_of"]


def _always(kernel: Kernel, sample: Sample) -> bool:
    return True


@dataclass(frozen=True)
class Law:
    """`says` it in words; `holds(subject, sample)` raises `Wrong` where it does not; `applies` to which samples."""

    name: str
    says: str
    holds: Callable[[Subject, Sample], None]
    applies: Callable[[Kernel, Sample], bool] = _always


def laws_of(contract: str) -> tuple[Law, ...]:
    """The laws that a contract names as `module:name`."""
    found = (reference.split(":") for reference in ops.get(contract).laws)
    laws: list[Law] = [getattr(import_module(module), name) for module, name in found]
    return tuple(laws)
