"""Cache layouts as types. Byte counts (`hal.layouts.sizes`) need no torch; everything else loads it on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.layouts.sizes import LAYOUTS, Sizes, sizes

if TYPE_CHECKING:
    from hal.layouts.pages import Layout, convert, layout

__all__ = ["LAYOUTS", "Layout", "Sizes", "convert", "layout", "sizes"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("hal.layouts.pages"), name)
    globals()[name] = value
    return value
