"""Cache layouts and weight schemes that the CUDA kernels compute with, best first."""

from __future__ import annotations

from hal_triton.declared import CACHES, INDEX, WEIGHTS

__all__ = ["CACHES", "INDEX", "WEIGHTS"]
