"""A contract: what an operator means. Knows no device and imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hal.signature import Signature


@dataclass(frozen=True)
class Contract:
    """Signature, reference, edges in words, class of numerics, ranges of dynamic sizes, and parts if it is a composite.

    `reference` is `module:function`; a composite's takes the bound parts as keyword `parts`. `promises` are words that
    a call may sharpen in its `layouts`, with what holds where it says nothing. The reference of a `portable` contract
    is plain torch that a model runs on any device: it serves, behind every kernel, without permission. So a contract
    that comes later does not block backends that do not know it.
    """

    name: str
    version: int
    signature: str
    reference: str
    doc: str
    edges: Mapping[str, str]
    numerics: str
    dynamic: Mapping[str, tuple[int, int]]
    parts: tuple[str, ...] = ()
    samples: str = ""
    laws: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    promises: Mapping[str, str] = field(default_factory=dict)
    portable: bool = False

    @property
    def parsed(self) -> Signature:
        """The signature, parsed."""
        return Signature.parse(self.signature)

    @property
    def short(self) -> str:
        """The name without its family."""
        return self.name.split(".")[1]
