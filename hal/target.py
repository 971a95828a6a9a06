"""A target: frozen facts about one chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """`name` is `backend` or `backend:chip`; capabilities are named features, never an order of numbers."""

    name: str
    device_type: str
    features: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    present: bool = True
    emulated: bool = False

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.name.split(":")[0]


@dataclass(frozen=True)
class Backend:
    """What a distribution says of itself. `api` is the version of hal's hooks it was written for, `major.minor`."""

    name: str
    distribution: str
    device_type: str
    api: str = "1.0"
