"""aclnn calls served by Python: torch_npu's own C++ checks, allocates and packs; a kernel here computes.

`kernel(signature, names)` registers one. `accepting()` lets every call through without computing, which proves that
torch_npu's wrapper takes the arguments; `log()` names the calls.
"""

from __future__ import annotations

import ctypes as C
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hal_emulators.cann.abi import arguments

__all__ = ["accepting", "kernel", "log", "serve"]

Kernel = Callable[..., None]
KERNELS: dict[str, tuple[str, Kernel]] = {}
NO_KERNEL, REFUSED, FAILED = 561103, 161002, 361001  # aclnnStatus: no kernel, bad parameter, execution failed

_WAITING: dict[int, tuple[str, Kernel, list[Any]]] = {}
_NUMBERS = itertools.count(1)
_LOGS: list[list[str]] = []
_ACCEPTING = [False]
_KEPT: list[Any] = []  # what C++ calls must not be collected
ALWAYS = ("aclnnInplaceCopy", "aclnnCast", "aclnnInplaceZero", "aclnnInplaceFillScalar")
"""Computed in accept mode too: callers read what they wrote."""


def kernel(signature: str, *names: str) -> Callable[[Kernel], Kernel]:
    """Register a Python kernel for aclnn operators with one C signature, letters as `abi.arguments` reads them."""

    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(names, (signature, function)))
        return function

    return register


@contextmanager
def accepting() -> Iterator[list[str]]:
    """Inside, every aclnn call succeeds and computes nothing; gives the growing list of their names."""
    _ACCEPTING[0] = True
    try:
        with log() as names:
            yield names
    finally:
        _ACCEPTING[0] = False


@contextmanager
def log() -> Iterator[list[str]]:
    """Gives a list that grows by the name of every aclnn operator called inside."""
    names: list[str] = []
    _LOGS.append(names)
    try:
        yield names
    finally:
        _LOGS.remove(names)


def serve(opapi: C.CDLL, runtime: C.CDLL) -> None:
    """Answer the calls that reach the stand-in `libopapi.so` from now on."""
    opapi.hal_cann_name.restype = C.c_char_p
    names = [opapi.hal_cann_name(index).decode() for index in range(opapi.hal_cann_operators())]
    runtime.hal_cann_say.argtypes = (C.c_char_p,)

    def failed(name: str, code: int, error: BaseException | str) -> int:
        runtime.hal_cann_say(f"{name}: {error}".encode())
        return code

    @C.CFUNCTYPE(C.c_int, C.c_int, C.POINTER(C.c_uint64), C.POINTER(C.c_double), C.POINTER(C.c_uint64))
    def prepare(index: int, integers: Any, floats: Any, stack: Any) -> int:
        name = names[index]
        for each in _LOGS:
            each.append(name)
        if _ACCEPTING[0] and name not in ALWAYS:
            return 0  # no executor is given, so there is nothing to execute
        if name not in KERNELS:
            return failed(name, NO_KERNEL, "the emulated CANN has no kernel of it")
        signature, function = KERNELS[name]
        try:
            values, executor = arguments(signature, integers, floats, stack)
        except Exception as error:
            return failed(name, REFUSED, error)
        number = next(_NUMBERS)
        _WAITING[number] = (name, function, values)
        C.c_uint64.from_address(executor).value = number
        return 0

    @C.CFUNCTYPE(C.c_int, C.c_int, C.c_uint64)
    def execute(index: int, executor: int) -> int:
        name, function, values = _WAITING.pop(executor, (names[index], None, []))
        if function is None:
            return 0 if _ACCEPTING[0] else failed(name, FAILED, "it was executed without being prepared")
        try:
            function(*values)
        except Exception as error:
            return failed(name, FAILED, error)
        return 0

    _KEPT.extend((prepare, execute))
    opapi.hal_cann_serve(prepare, execute)
