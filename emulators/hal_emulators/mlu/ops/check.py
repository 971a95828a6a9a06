"""What every stand-in does before it computes: each tensor on the device, of a documented dtype and shape, contiguous.

Bodies are given CPU tensors over the same bytes, so what they write lands in the caller's tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from hal_emulators.device.host import as_host

__all__ = ["BYTES", "FLOATS", "HALVES", "INT32", "CallError", "Checks", "operator", "require"]

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)
INT32 = (torch.int32,)
BYTES = (torch.int8,)


class CallError(RuntimeError):
    """A call that torch_mlu_ops would refuse, or that would read memory it must not."""


def require(holds: bool, what: str) -> None:
    """Refuse the call with `what` unless `holds`."""
    if not holds:
        raise CallError(what)


class Checks:
    """Checks of one call. Dimensions are words: equal words are equal sizes, numbers themselves, `_` is anything."""

    def __init__(self, operator: str, **sizes: int) -> None:
        self.operator, self.sizes = operator, dict(sizes)

    def __call__(
        self, name: str, tensor: Tensor | None, dtypes: tuple[torch.dtype, ...], dims: str, *, contiguous: bool = True
    ) -> None:
        """An argument; None is an optional one that was left out."""
        if tensor is None:
            return
        where = f"torch_mlu_ops.{self.operator}: {name}"
        require(tensor.dtype in dtypes, f"{where} is {tensor.dtype}, wanted {' or '.join(map(str, dtypes))}")
        words = dims.split()
        require(tensor.dim() == len(words), f"{where} is {list(tensor.shape)}, wanted [{', '.join(words)}]")
        for word, size in zip(words, tensor.shape, strict=True):
            wanted = int(word) if word.isdigit() else size if word == "_" else self.sizes.setdefault(word, size)
            require(
                size == wanted, f"{where} is {list(tensor.shape)}, wanted [{', '.join(words)}] with {word} {wanted}"
            )
        require(not contiguous or tensor.is_contiguous(), f"{where} must be contiguous")

    def that(self, holds: bool, what: str) -> None:
        """Any other condition."""
        require(holds, f"torch_mlu_ops.{self.operator}: {what}")

    def indices(self, name: str, tensor: Tensor, low: int, high: int) -> None:
        """Indices must lie in `low..high-1`: others would touch memory that is not theirs."""
        fine = not tensor.numel() or (int(tensor.min()) >= low and int(tensor.max()) < high)
        self.that(fine, f"{name} holds values outside {low}..{high - 1}")

    def absent(self, **arguments: Any) -> None:
        """Arguments that the operator reserves."""
        for name, value in arguments.items():
            self.that(value is None, f"{name} must be None")


def operator(body: Callable[..., Any]) -> Callable[..., Any]:
    """A vendor operator: refuses host tensors and unknown keywords; what the body returns comes back on the device."""
    signature = inspect.signature(body)

    @wraps(body)
    def call(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        given: list[tuple[Tensor, Tensor]] = []
        for name, value in bound.arguments.items():
            if isinstance(value, Tensor):
                where = f"torch_mlu_ops.{body.__name__}: {name}"
                require(value.device.type == "mlu", f"{where} is on {value.device}, wanted mlu")
                given.append((value, as_host(value.detach())))
                bound.arguments[name] = given[-1][1]
        devices = {value.device for value, _ in given}
        require(len(devices) < 2, f"torch_mlu_ops.{body.__name__}: tensors are on {', '.join(map(str, devices))}")
        return _back(body(*bound.args, **bound.kwargs), given)

    return call


def _back(result: Any, given: list[tuple[Tensor, Tensor]]) -> Any:
    if isinstance(result, tuple):
        return tuple(_back(each, given) for each in result)
    if not isinstance(result, Tensor):
        return result
    for device, host in given:
        if host is result:
            return device
    return torch.ops.hal_device.as_device(result, given[0][0].device.index)
