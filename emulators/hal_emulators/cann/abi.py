"""Arguments of an aclnn call as Python values: what lies in the handles of `src/opapi.cpp`.

Imports torch, but not torch_npu.
"""

from __future__ import annotations

import ctypes as C
import math
import struct
from typing import Any

import torch
from torch import Tensor

from hal_emulators.cann.hifloat8 import decoded

__all__ = ["E2M1", "FP4_E2M1", "HIF8", "INT4", "NZ", "Argument", "aliased", "arguments"]

MOST_DIMS = 16
NZ = 29
INT4, HIF8, FP4_E2M1, FP4_E1M2 = 29, 34, 40, 41
PACKED = (INT4, FP4_E2M1, FP4_E1M2)
"""aclDataTypes of half a byte, two per byte, low half first."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    7: torch.uint16,
    8: torch.uint32,
    9: torch.int64,
    10: torch.uint64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    17: torch.complex128,
    27: torch.bfloat16,
    35: torch.float8_e5m2,
    36: torch.float8_e4m3fn,
    37: torch.float8_e8m0fnu,
}
"""aclDataType -> torch dtype; the others are read as bytes."""


class _Tensor(C.Structure):
    _fields_ = (
        ("type", C.c_int32),
        ("format", C.c_int32),
        ("offset", C.c_int64),
        ("dims", C.c_int32),
        ("storage_dims", C.c_int32),
        ("shape", C.c_int64 * MOST_DIMS),
        ("stride", C.c_int64 * MOST_DIMS),
        ("storage", C.c_int64 * MOST_DIMS),
        ("data", C.c_void_p),
    )


class _Scalar(C.Structure):
    _fields_ = (("type", C.c_int64), ("value", C.c_uint8 * 16))


class _Array(C.Structure):
    _fields_ = (("n", C.c_uint64), ("items", C.c_void_p))


def memory(address: int | None, count: int) -> Tensor:
    """uint8 [count]: device memory, seen from the host, not copied."""
    if not address or not count:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((C.c_char * count).from_address(address), dtype=torch.uint8)


def aliased(x: Tensor) -> Tensor:
    """A CPU tensor on the same memory as an npu tensor."""
    if not x.numel():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    storage = x.untyped_storage()
    count = storage.nbytes() // x.dtype.itemsize * x.dtype.itemsize
    whole = memory(storage.data_ptr(), count)
    whole = whole if x.dtype == torch.uint8 else whole.view(x.dtype)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


class Argument:
    """One aclTensor: dtype and format codes, shape and strides in elements, and where its memory is."""

    def __init__(self, handle: int) -> None:
        held = _Tensor.from_address(handle)
        self.type, self.format, self.offset, self.data = held.type, held.format, held.offset, held.data
        self.shape = tuple(held.shape[: held.dims])
        self.stride = tuple(held.stride[: held.dims])
        self.storage = tuple(held.storage[: held.storage_dims])

    def __repr__(self) -> str:
        return f"Argument(type {self.type}, format {self.format}, {list(self.shape)}, strides {list(self.stride)})"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES.get(self.type, torch.uint8)

    @property
    def memory(self) -> Tensor:
        """The elements themselves, not copied; writing writes the device. 4-bit types are bytes of two."""
        count = math.prod(self.shape)
        if self.type in PACKED:
            return memory((self.data or 0) + self.offset // 2, (count + 1) // 2)
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        reach = self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        whole = memory(self.data, reach * self.dtype.itemsize)
        whole = whole if self.dtype == torch.uint8 else whole.view(self.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset)

    def values(self) -> Tensor:
        """Logical values in rows: 4-bit codes and ue8m0 scales decoded, FRACTAL_NZ undone."""
        if self.type in PACKED:
            return self._nibbles()
        if self.format == NZ:
            return self._from_fractions()
        if self.type == 34:
            return decoded(self.memory.view(torch.uint8))
        if self.type == 37:
            return torch.exp2(self.memory.view(torch.uint8).float() - 127)
        return self.memory

    def write(self, values: Tensor) -> None:
        """Store `values`, rounded to this tensor's dtype.

        Raises:
            ValueError: they are of another shape.
        """
        if tuple(values.shape) != self.shape:
            raise ValueError(f"the kernel computed {list(values.shape)} for an output {list(self.shape)}")
        self.memory.copy_(values)

    def store(self, values: Tensor) -> None:
        """Store logical values in this tensor's storage format; what a fraction has beyond them is zero."""
        if self.format != NZ:
            self.memory.copy_(values)
            return
        *batch, n1, m1, m0, n0 = self.storage
        m, n = values.shape[-2:]
        padded = torch.nn.functional.pad(
            values.contiguous().view(torch.uint8), (0, (n1 * n0 - n) * self.dtype.itemsize)
        )
        rows = torch.zeros((*batch, m1 * m0, padded.shape[-1]), dtype=torch.uint8)
        rows[..., :m, :] = padded.view(*batch, m, -1)
        blocks = rows.view(*batch, m1 * m0, n1, n0 * self.dtype.itemsize).movedim(-2, -3)
        memory(self.data, rows.numel()).copy_(blocks.reshape(-1))

    def _nibbles(self) -> Tensor:
        packed = self.memory
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten().long()
        if self.type == INT4:
            values = (codes - 16 * (codes > 7)).to(torch.int8)
        elif self.type == FP4_E2M1:
            values = torch.tensor(E2M1)[codes]
        else:
            raise NotImplementedError("fp4 e1m2 is not emulated")
        return values[: math.prod(self.shape)].as_strided(self.shape, self.stride)

    def _from_fractions(self) -> Tensor:
        turned = self.stride[-1] != 1
        shape = (*self.shape[:-2], self.shape[-1], self.shape[-2]) if turned else self.shape
        *batch, m, n = shape
        wide = 32 // self.dtype.itemsize
        blocks = (*batch, -(-n // wide), -(-m // 16), 16, wide)
        whole = memory(self.data, math.prod(blocks) * self.dtype.itemsize).view(self.dtype).view(blocks)
        rows = whole.movedim(-4, -2).reshape(*batch, blocks[-3] * 16, blocks[-4] * wide)[..., :m, :n]
        return rows.mT if turned else rows


_NUMBERS = {0: "f", 1: "e", 2: "b", 3: "i", 4: "B", 6: "h", 9: "q", 10: "Q", 11: "d", 12: "?"}


def _scalar(handle: int) -> Any:
    held = _Scalar.from_address(handle)
    value = bytes(held.value)
    if held.type == 27:
        return torch.frombuffer(bytearray(value[:2]), dtype=torch.bfloat16).item()
    return struct.unpack_from(_NUMBERS[held.type], value)[0]


def _array(handle: int, letter: str) -> list[Any]:
    held = _Array.from_address(handle)
    return list(struct.unpack(f"{held.n}{letter}", C.string_at(held.items, held.n * struct.calcsize(letter))))


def _value(kind: str, word: int) -> Any:
    if kind == "i":
        return C.c_int64(word).value
    if kind == "j":
        return C.c_int32(word & 0xFFFFFFFF).value
    if kind == "b":
        return bool(word & 0xFF)
    if not word:
        return None
    if kind == "T":
        return Argument(word)
    if kind == "L":
        return [Argument(handle) for handle in _array(word, "Q")]
    if kind == "A":
        return _array(word, "q")
    if kind == "F":
        return _array(word, "f")
    if kind == "S":
        return _scalar(word)
    if kind == "s":
        return C.string_at(word).decode()
    raise KeyError(kind)


def arguments(signature: str, integers: Any, floats: Any, stack: Any) -> tuple[list[Any], int]:
    """The values of one call, and the address where its executor goes.

    Args:
        signature: a letter per argument: Tensor, tensor List, Scalar, integer Array, Float array, string, i int64,
            j int32, bool, double, f float.
        integers, floats, stack: the six integer and eight vector registers, and the words behind them.
    """
    values: list[Any] = []
    used = [0, 0, 0]

    def word() -> int:
        source, at = (integers, 0) if used[0] < 6 else (stack, 2)
        used[at] += 1
        return int(source[used[at] - 1])

    for kind in signature:
        if kind not in "df":
            values.append(_value(kind, word()))
            continue
        if used[1] < 8:
            bits = struct.pack("d", floats[used[1]])
            used[1] += 1
        else:
            bits = struct.pack("Q", stack[used[2]])
            used[2] += 1
        values.append(struct.unpack_from(kind, bits)[0])
    workspace, executor = word(), word()
    C.c_uint64.from_address(workspace).value = 0
    return values, executor
