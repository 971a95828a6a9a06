"""Figures that others published, to print beside our own measurement."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import resources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Figure", "published"]


@dataclass(frozen=True)
class Figure:
    """One published number: which kernel did what on which chip, in TFLOP/s, and where it is said."""

    target: str
    contract: str
    what: str
    chip: str
    tflops: float
    source: str


def published(target: str) -> tuple[Figure, ...]:
    """All figures for chips of the kind `target`, from `published.toml`."""
    text = resources.files("hal.bench").joinpath("published.toml").read_text(encoding="utf-8")
    return tuple(Figure(**entry) for entry in tomllib.loads(text)["figure"] if entry["target"] == target)
