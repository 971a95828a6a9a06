"""The heavy pieces as Pallas kernels, for TPU and GPU; each has the signature of the jax.numpy piece that it replaces.

Blocks are whole in their last two dimensions or multiples of (8, 128), which Mosaic (TPU) asks for, and no program adds
to what another wrote, which Triton (GPU) could not order. Rows are padded to multiples of 128.
"""

from __future__ import annotations

from typing import Any


def _gpu() -> Any:
    """Triton, where jax can lower to it."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return None
    return triton.CompilerParams(num_warps=8, num_stages=1)


GPU = _gpu()
"""What tells Pallas to lower by Triton: its other way to GPUs puts whole blocks into shared memory."""
