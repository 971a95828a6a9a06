"""When the host waits for a device: for a value it reads, a copy it takes, a shape it must learn.

A computation that never does can be captured as a graph and issued far ahead. torch marks operators whose result or
whose shape depends on values; whether their kernel lies on the host or waits for it, the effect is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["reads", "waits"]

MARKS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
UNMARKED = ("aten.is_nonzero.default", "aten.repeat_interleave.self_Tensor")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Only a mask has to be counted first."""
MASKS = (torch.bool, torch.uint8)


def waits(operator: Any, arguments: Sequence[Any], words: Mapping[str, Any]) -> bool:
    """Whether the host must know values of an operator's tensors to return from it."""
    if operator.overloadpacket.__name__ in INDEXING:
        filled = len(arguments) > 2 and arguments[2].numel() == 1  # in place, under the mask
        return not filled and any(index is not None and index.dtype in MASKS for index in arguments[1])
    if words.get("output_size") is not None:  # of repeat_interleave: it is told
        return False
    return str(operator) in UNMARKED or any(mark in operator.tags for mark in MARKS)


class _Reading(TorchDispatchMode):
    """Names every operator of this thread that brings something from a device to the host."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        words = kwargs or {}
        made = func(*args, **words)
        if any(not _here(each) for each in tree_leaves((args, words))):
            landed = any(isinstance(each, Tensor) and _here(each) for each in tree_leaves(made))
            if landed or waits(func, args, words):
                self.names.append(str(func))
        return made


def _here(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.device.type in ("cpu", "meta")


@contextmanager
def reads() -> Iterator[list[str]]:
    """Gives a list that grows by the name of every operator, of this thread, for which the host waited for a device."""
    names: list[str] = []
    with _Reading(names):
        yield names
