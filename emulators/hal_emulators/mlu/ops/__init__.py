"""A stand-in for torch_mlu_ops: published signatures, documented limits, bodies from the documented mathematics."""

from __future__ import annotations

from types import ModuleType

__all__ = ["generation"]


def generation(version: str) -> ModuleType | None:
    """The module as that version publishes it; None for "none"."""
    return None
