"""What a kernel learns of the other processes of a communicator."""

from __future__ import annotations

import ctypes as C

import torch
from torch import Tensor

__all__ = ["gathered", "members"]

BYTES = 7  # HcclDataType of uint8


def members(group: str) -> tuple[int, int]:
    """Own number in the communicator and how many processes it has.

    Raises:
        ValueError: no communicator has this name.
    """
    library, found = _communicator(group)
    rank, size = C.c_uint32(), C.c_uint32()
    library.HcclGetRankId(found, C.byref(rank))
    library.HcclGetRankSize(found, C.byref(size))
    return rank.value, size.value


def gathered(group: str, size: int, x: Tensor) -> Tensor:
    """`x` of every process of the communicator, [size, *x.shape].

    Raises:
        ValueError: no communicator has this name, or it has another size.
        RuntimeError: a process is missing.
    """
    library, found = _communicator(group)
    if members(group)[1] != size:
        raise ValueError(f"{group} has {members(group)[1]} processes, the call says {size}")
    mine = x.contiguous().view(-1).view(torch.uint8)
    out = torch.empty(size, mine.numel(), dtype=torch.uint8)
    words = (C.c_void_p(mine.data_ptr()), C.c_void_p(out.data_ptr()), C.c_uint64(mine.numel()))
    if library.HcclAllGather(*words, BYTES, found, None):
        raise RuntimeError(f"{group}: a process is missing")
    return out.view(x.dtype).view(size, *x.shape)


def _communicator(group: str) -> tuple[C.CDLL, C.c_void_p]:
    library = C.CDLL("libhccl.so")  # loaded already
    library.hal_cann_communicator.restype = C.c_void_p
    found = library.hal_cann_communicator(group.encode())
    if not found:
        raise ValueError(f"no communicator is called {group!r}")
    return library, C.c_void_p(found)
