"""The orthonormal Hadamard transform that spreads outliers over a row before it is quantised."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hal.errors import ContractError

__all__ = ["hadamard_transform"]


def hadamard_transform(x: Tensor) -> Tensor:
    """`x H / sqrt(n)` over the last dimension, `H` in Sylvester's order; its own inverse.

    As `hadamard_transform(x, scale=n**-0.5)` of the fast_hadamard_transform package: summed in float32 (float64 where
    `x` is), result in the dtype of `x`. Differentiable.

    Raises:
        ContractError: `n` is not a power of two.
    """
    size = x.shape[-1]
    if size < 1 or size & (size - 1):
        raise ContractError(
            f"a Hadamard transform of {size} channels", where="hadamard_transform", fix="pass a power of two"
        )
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale: float = size**-0.5
    return (x.to(work) @ _matrix(size, work, x.device) * scale).to(x.dtype)


@lru_cache(maxsize=16)
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's matrix of +1 and -1, [size, size]."""
    with torch.inference_mode(False):  # an inference tensor could not take part in later gradients
        matrix = torch.ones(1, 1, dtype=dtype, device=device)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix
