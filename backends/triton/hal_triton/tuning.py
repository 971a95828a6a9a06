"""Tile sizes, warps and pipeline stages of every kernel, per chip, from `tuning.toml`.

The chip is whatever Triton's active driver says: a present GPU, or the one that an emulator or the compiler tier stands
in for. Nothing is measured or learned at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import triton

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


@dataclass(frozen=True)
class Config:
    """One kernel's configuration on one chip.

    Attributes:
        entry: its name in the table.
        tiles: compile-time sizes by parameter name.
        warps: warps per program.
        stages: depth of the software pipeline.
        chosen: how this configuration was chosen.
    """

    entry: str
    tiles: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    warps: int = 4
    stages: int = 1
    chosen: str = ""

    def __getitem__(self, tile: str) -> int:
        return self.tiles[tile]


SINGLE = {"mlu": (1, 1)}
"""Warps and stages of chips whose cores run one program each, without a pipeline."""


@cache
def table() -> Mapping[str, Mapping[str, Any]]:
    """The whole table: kernel -> chip -> entry."""
    text = resources.files("hal_triton").joinpath("tuning.toml").read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text))


@cache
def has(kernel: str, chip: str) -> bool:
    """Whether `kernel` is for `chip`; the table's `without` names chips where other kernels do its work."""
    return chip not in table()[kernel].get("without", ())


@cache
def config(kernel: str, chip: str) -> Config:
    """The configuration of `kernel` on `chip`; a chip without an entry of its own has the kernel's default."""
    entries = table()[kernel]
    entry = {**entries["default"], **entries.get(chip, {})}
    sizes = {name: value for name, value in entry.items() if name.isupper()}
    warps, stages = SINGLE.get(chip, (entry["warps"], entry["stages"]))
    return Config(kernel, MappingProxyType(sizes), warps, stages, entry["chosen"])


_stand_in: str | None = None


@contextmanager
def stand_in(name: str) -> Iterator[None]:
    """Inside, `chip` is `name`: for a compiler without the chip."""
    global _stand_in
    before, _stand_in = _stand_in, name
    try:
        yield
    finally:
        _stand_in = before


def chip() -> str:
    """The active chip as the table names it: "sm90" on NVIDIA, "gfx942" on AMD, "a2" (as A3) and "a5" on Ascend."""
    if _stand_in is not None:
        return _stand_in
    target = triton.runtime.driver.active.get_current_target()
    if target.backend == "npu":
        return "a5" if str(target.arch).startswith("Ascend950") else "a2"
    return {"cuda": f"sm{target.arch}", "hip": str(target.arch)}.get(target.backend, str(target.backend))


def native_fp8(name: str) -> bool:
    """Whether the chip multiplies e4m3 (NVIDIA from Ada on)."""
    return name in ("sm89", "sm90", "sm100", "sm103", "sm120", "sm121")


def native_scaled(name: str) -> bool:
    """Whether the chip multiplies block-scaled codes (NVIDIA's Blackwell)."""
    return native_mixed(name) or name in ("sm120", "sm121")


def native_mixed(name: str) -> bool:
    """Whether Triton multiplies block-scaled e4m3 with e2m1 by the chip's unit (data-centre Blackwell's)."""
    return name in ("sm100", "sm103")
