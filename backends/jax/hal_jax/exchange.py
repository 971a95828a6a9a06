"""Tensors between torch and JAX: shared through DLPack where memory allows, copied and counted where it does not.

Index tensors are int64 in hal and int32 here: JAX's 64-bit mode is a global switch of the user's process, and no index
of a call passes 2**31.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
from jax import Array
from torch import Tensor

__all__ = ["bucket", "copies", "like", "padded", "to_jax", "to_torch"]

ALIGNED = 64
"""Bytes to which XLA wants a buffer aligned that it does not copy."""

SMALLEST = 8

BYTES = (torch.float8_e4m3fn, torch.float8_e8m0fnu)
"""Types that DLPack does not carry; their bytes travel."""

_copied = {"tensors": 0, "bytes": 0}


def copies() -> dict[str, int]:
    """How many tensors, and bytes, were copied on their way since the process began."""
    return dict(_copied)


def bucket(length: int) -> int:
    """The padded length: the next power of two, at least 8."""
    return max(SMALLEST, 1 << max(0, length - 1).bit_length())


def to_jax(tensor: Tensor) -> Array:
    """A tensor as an array of the same memory, unless type, strides, alignment or device ask for a copy."""
    tensor = tensor.detach()
    if tensor.dtype in BYTES:
        tensor = tensor.view(torch.uint8)
    if tensor.dtype == torch.int64:
        tensor = _count(tensor.to(torch.int32))
    if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNED or not tensor.numel():
        tensor = _count(tensor.clone(memory_format=torch.contiguous_format))
    array = jax.dlpack.from_dlpack(tensor)
    if jax.default_backend() != "cpu":
        _count(tensor)
        array = jax.device_put(array, jax.devices()[0])
    return array


def padded(tensor: Tensor, rows: int, fill: float = 0) -> Array:
    """A tensor with its first dimension padded to `rows`."""
    missing = rows - tensor.shape[0]
    if missing:
        tensor = tensor.detach()
        if tensor.dtype in BYTES:
            tensor = tensor.view(torch.uint8)
        tensor = _count(torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), fill)]))
    return to_jax(tensor)


def to_torch(array: Array, dtype: torch.dtype | None = None) -> Tensor:
    """An array as a tensor of the same memory; from another device than the host, a copy.

    Args:
        dtype: what the bytes stand for (FP8), or int64 for indices.
    """
    if jax.default_backend() != "cpu":
        array = jax.device_put(array, jax.devices("cpu")[0])
    tensor = torch.from_dlpack(array)
    if jax.default_backend() != "cpu":
        _count(tensor)
    if dtype in BYTES:
        return tensor.view(dtype)
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def like(dtype: torch.dtype) -> Any:
    """JAX's name of a float type."""
    return {
        torch.bfloat16: jax.numpy.bfloat16,
        torch.float16: np.float16,
        torch.float32: np.float32,
    }[dtype]


def _count(tensor: Tensor) -> Tensor:
    _copied["tensors"] += 1
    _copied["bytes"] += tensor.nbytes
    return tensor
