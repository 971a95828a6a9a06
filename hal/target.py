"""A target: frozen facts about one chip."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Target:
    """`name` is `backend` or `backend:chip`; capabilities are named features, never an order of numbers.

    `streams`: side streams on which independent parts of a layer may run beside each other (`hal.overlap`).
    """

    name: str
    device_type: str
    features: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    present: bool = True
    emulated: bool = False
    streams: int = 0

    @property
    def asked(self) -> str:
        """What HAL_BACKEND says to get it."""
        return f"{self.name}@emulated" if self.emulated else self.name

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


@cache
def described() -> tuple[Target, ...]:
    """Every chip of `profiles.toml`, here or not. `facts` maps a name to value, source and date."""
    words = tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))
    return tuple(
        Target(
            name,
            chip["device_type"],
            frozenset(chip.get("features", ())),
            {fact["name"]: fact for fact in chip.get("facts", ())},
            present=False,
            streams=chip.get("streams", 0),
        )
        for name, chip in words.items()
    )
