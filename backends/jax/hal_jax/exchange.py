"""Tensors to XLA and back: the same memory where DLPack can say so, a counted copy where it cannot.

torch owns every argument, cache and result; XLA computes. A torch tensor on the host becomes a `jax.Array` over the
same bytes if it is contiguous and starts at a multiple of 64 bytes (XLA's rule). Results come back without a copy.
Kernels that write caches write with torch, so no array is ever aliased to memory that XLA writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import jax
import torch
from torch import Tensor

from hal.errors import ContractError

__all__ = ["COPIES", "array", "bucket", "on", "platform", "tensor"]

Function = TypeVar("Function", bound=Callable[..., Any])

COPIES: Counter[str] = Counter()
"""Bytes copied on the way to XLA and back, by reason; tests read and clear it."""

_ALIGNED = 64
_PLATFORM: ContextVar[str] = ContextVar("hal_jax platform", default="cpu")
_BYTES = (torch.float8_e4m3fn, torch.float8_e8m0fnu)


def bucket(count: int) -> int:
    """The power of two that is no less than `count`, at least 1: how many rows an array of `count` rows is given."""
    return 1 << max(0, count - 1).bit_length()


def platform() -> str:
    """XLA's name of the platform that the running kernel is for."""
    return _PLATFORM.get()


@contextmanager
def _entered(name: str) -> Iterator[None]:
    before = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(before)


def on(name: str, function: Function) -> Function:
    """`function` on the platform `name`: its arrays go there."""

    @wraps(function)
    def there(*arguments: Any, **attributes: Any) -> Any:
        with _entered(name):
            return function(*arguments, **attributes)

    return there  # type: ignore[return-value]


def array(x: Tensor, rows: int | None = None) -> jax.Array:
    """`x` as an array on the kernel's platform; 8-bit floats as their bytes, int64 as int32.

    Args:
        rows: length of the first dimension; zeros are appended up to it.

    Raises:
        ContractError: `x` is float64: jax's 64-bit types stay off, and its conversion would be silent.
    """
    x = x.detach()
    if x.dtype == torch.float64:
        raise ContractError(
            "XLA got float64 and would take it as float32",
            where="hal_jax.exchange",
            fix="take float32, or HAL_BACKEND=cpu, which computes in float64",
        )
    if x.dtype in _BYTES:
        x = _bytes(x)
    if x.dtype == torch.int64:
        COPIES["int64"] += x.nbytes // 2
        x = x.to(torch.int32)
    if rows is not None and rows != len(x):
        COPIES["bucket"] += x.nbytes
        padded = x.new_zeros(rows, *x.shape[1:])
        padded[: len(x)] = x
        x = padded
    if not x.is_contiguous():
        COPIES["strides"] += x.nbytes
        x = x.contiguous()
    if x.data_ptr() % _ALIGNED and x.nbytes:
        COPIES["alignment"] += x.nbytes
        x = x.clone()
    there = jax.dlpack.from_dlpack(x)
    if platform() != "cpu":
        COPIES["device"] += x.nbytes
        there = jax.device_put(there, jax.devices(platform())[0])
    return there


def _bytes(x: Tensor) -> Tensor:
    """8-bit floats as uint8, whatever their strides."""
    return x.view(torch.uint8)


def tensor(x: jax.Array, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """The array as a tensor on the host, when it is computed: its first `rows` rows, its bytes as `dtype`."""
    if platform() != "cpu":
        COPIES["device"] += x.nbytes
        x = jax.device_put(x, jax.devices("cpu")[0])
    out = torch.from_dlpack(x.block_until_ready())
    out = out if rows is None else out[:rows]
    return out if dtype is None or dtype == out.dtype else out.view(dtype)
