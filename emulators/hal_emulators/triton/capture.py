"""What a captured region (CUDA graph) must not do, checked on the host.

Inside `captured()` no torch call may bring a device value to the host or make a shape that depends on one: on a real
chip either one synchronises, which a capture refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
DYNAMIC = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "_local_scalar_dense")


class HostReadError(RuntimeError):
    """A kernel that may be captured read a device value on the host."""


class _Functions(TorchFunctionMode):
    """Refuses the tensor methods that reach the host without passing the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in HOST_READS and args and isinstance(args[0], torch.Tensor):
            raise HostReadError(f"{name} reads a device value on the host, which a captured region cannot do")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Refuses operators whose result's shape, or whose result itself, lives on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in DYNAMIC or (name == "index" and any(_is_mask(index) for index in args[1])):
            raise HostReadError(f"{name} makes a shape from device values, which a captured region cannot do")
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def captured() -> Iterator[None]:
    """Raise `HostReadError` where a captured region would fail."""
    with _Functions(), _Operators():
        yield
