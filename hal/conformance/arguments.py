"""Tensors inside the arguments of a call: found by path, copied between guards, spread out, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hal.ops import get

__all__ = ["GUARD", "Guarded", "rebuilt", "same_bits", "snapshot", "spread", "tensors"]

GUARD = 1024
"""Bytes before and behind every argument. All bits set: NaN in every float format, -1 in signed integers."""


def tensors(contract: str, arguments: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its path, such as `cache.pages`."""
    for argument, value in zip(get(contract).parsed.arguments, arguments, strict=True):
        yield from _inside(argument.name, value)


def _inside(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _inside(f"{path}.{field.name}", getattr(value, field.name))


def rebuilt(contract: str, arguments: Sequence[Any], change: Callable[[str, Tensor], Tensor]) -> tuple[Any, ...]:
    """The same arguments with every tensor replaced by `change(path, tensor)`."""
    names = [argument.name for argument in get(contract).parsed.arguments]
    return tuple(_changed(name, value, change) for name, value in zip(names, arguments, strict=True))


def _changed(path: str, value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(path, value)
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        new = {name: _changed(f"{path}.{name}", inner, change) for name, inner in found.items()}
        return replace(value, **{name: inner for name, inner in new.items() if inner is not found[name]})
    return value


class Guarded:
    """Copies of arguments, each tensor between two bands of `GUARD` bytes that must stay as they are."""

    def __init__(self, contract: str, arguments: Sequence[Any]) -> None:
        self._memory: list[tuple[str, Tensor, int]] = []
        self.arguments = rebuilt(contract, arguments, self._copy)

    def _copy(self, path: str, tensor: Tensor) -> Tensor:
        if not tensor.is_contiguous():
            return tensor  # spread out on purpose; its gaps are its guards
        memory = torch.full((tensor.nbytes + 2 * GUARD,), 0xFF, dtype=torch.uint8, device=tensor.device)
        self._memory.append((path, memory, tensor.nbytes))
        inner = memory[GUARD : GUARD + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return inner.copy_(tensor)

    def broken(self) -> list[str]:
        """Paths of tensors whose guards were overwritten."""
        return [
            path
            for path, memory, size in self._memory
            if bool((memory[:GUARD] != 0xFF).any()) or bool((memory[GUARD + size :] != 0xFF).any())
        ]


def spread(path: str, tensor: Tensor) -> Tensor:
    """The same values with other strides, and all bits set in the gaps.

    Pages and states lie twice as far apart as they are long; rows of values are followed by a gap.
    """
    if path.endswith((".pages", "state.tensor")):
        wide = torch.full((len(tensor), 2 * tensor[:1].nbytes), 0xFF, dtype=torch.uint8, device=tensor.device)
        view = wide.view(tensor.dtype)[:, : tensor[:1].numel()].unflatten(1, tensor.shape[1:])
        return view.copy_(tensor) if len(tensor) else tensor
    if "." in path or tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
        return tensor
    gap = 256 // tensor.itemsize
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + gap), torch.nan, dtype=tensor.dtype, device=tensor.device)
    return wide[..., : tensor.shape[-1]].copy_(tensor)


def snapshot(contract: str, arguments: Sequence[Any]) -> dict[str, Tensor]:
    """A copy of every tensor, by path."""
    return {path: tensor.detach().clone() for path, tensor in tensors(contract, arguments)}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in shape, dtype and every bit; NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel():
        return True
    return torch.equal(one.detach().contiguous().view(torch.uint8), other.detach().contiguous().view(torch.uint8))
