"""What this backend's own kernels can do: the portable Triton kernels, as they are."""

from __future__ import annotations

from hal_triton import declared

TRITON = declared.kernels("cuda", capturable=True)
