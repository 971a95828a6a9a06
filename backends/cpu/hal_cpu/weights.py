"""Quantised weights as the float32 matrices that plain CPUs multiply fastest.

Dequantising costs as much as several products of one row, so matrices are kept while a bound on their memory allows.
What was kept first stays: a model walks its weights in a circle, where evicting the oldest would evict every matrix
just before its use. A kept matrix goes when the codes it was made of go.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hal.formats import PackedWeight

BLOCK_FLOATS = 1 << 22  # floats dequantised at a time where a matrix is not kept (16 MiB)
ALIGNED = 128  # rows: the tallest block that shares a scale


class DequantisedWeights:
    """Matrices of packed weights, at most `limit` bytes of them kept (0: none)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: dict[int, dict[tuple[object, ...], Tensor]] = {}

    def matrices(self, weight: PackedWeight, dtype: torch.dtype, expert: int | None = None) -> Iterator[Tensor]:
        """The weight, or one expert of a stacked one, in `dtype`: [outputs, features], whole or some rows at a time."""
        if weight.codes.dtype == dtype:
            yield weight.codes if expert is None else weight.codes[expert]
            return
        kept, key = self._kept.get(id(weight.codes), {}), (expert, dtype, _version(weight.codes))
        if key not in kept:
            rows, columns = weight.shape[-2:]
            size = rows * columns * dtype.itemsize
            if self.bytes + size > self.limit:
                step = max(ALIGNED, BLOCK_FLOATS // columns // ALIGNED * ALIGNED)
                for low in range(0, rows, step):
                    yield weight.rows(low, min(low + step, rows), expert).dequantize(dtype)
                return
            kept = self._keep(weight.codes, size)
            kept[key] = weight.rows(0, rows, expert).dequantize(dtype)
        yield kept[key]

    def clear(self) -> None:
        """Give the memory back."""
        for matrices in self._kept.values():
            matrices.clear()
        self.bytes = 0

    def _keep(self, codes: Tensor, size: int) -> dict[tuple[object, ...], Tensor]:
        self.bytes += size
        if id(codes) not in self._kept:
            self._kept[id(codes)] = {}
            weakref.finalize(codes, self._forget, id(codes))
        return self._kept[id(codes)]

    def _forget(self, key: int) -> None:
        self.bytes -= sum(matrix.nbytes for matrix in self._kept.pop(key, {}).values())


def _version(tensor: Tensor) -> int:
    """Changes when the tensor is written in place; tensors of inference mode are not tracked."""
    return -1 if tensor.is_inference() else tensor._version


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


WEIGHTS = DequantisedWeights(_quarter_of_memory())
"""The process's kept matrices; set `WEIGHTS.limit` to bound their memory otherwise."""
