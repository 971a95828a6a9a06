"""A kernel: the declaration of one implementation. Holds no code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hal.constraints import Constraint
from hal.errors import Broken


@dataclass(frozen=True)
class Kernel:
    """One implementation of `contract`: `code` is `module:function`, `constraints` say which calls it can serve.

    `delegates` says that it runs the contract's reference on the device. It is judged as any other, but agreeing with
    itself is no evidence: its tier stays declared. Without the word, calling the reference is a failure.

    `precision` is what it is judged by where it rounds intermediate results more than the contract promises: fields of
    `hal.numerics.precision.Precision` and their values. Say so in `notes`.
    """

    id: str
    contract: str
    code: str
    constraints: tuple[Constraint, ...] = ()
    deterministic: bool = True
    batch_invariant: bool = False
    capturable: bool = False
    host_sync: bool = False
    delegates: bool = False
    precision: tuple[tuple[str, str], ...] = ()
    version: int = 1
    notes: str = ""

    def load(self) -> Callable[..., Any]:
        """The function; this is the first moment at which its module is imported.

        Raises:
            Broken: the module does not import, or has no such function.
        """
        module, name = self.code.split(":")
        try:
            function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except Exception as error:
            what = f"{self.code} does not import: {type(error).__name__}: {error}"
            fix = "repair the package, or leave the kernel out with HAL_OPS"
            raise Broken(what, where=self.id, fix=fix) from error
        return function


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for a chip with one set of compile-time values.

    Attributes:
        kernel: the function that is launched.
        serves: ids of the kernels that launch it.
        entry: its configuration's name.
        values: compile-time values, in words.
        facts: what the compiler says: registers, bytes spilled, KiB of shared memory and the like.
        fault: why it is no good, empty where it is.
    """

    chip: str
    kernel: str
    serves: tuple[str, ...]
    entry: str
    values: str
    facts: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
