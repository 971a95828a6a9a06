"""Turn Triton into its interpreter, and back.

Triton reads TRITON_INTERPRET when a kernel is decorated, its own library included, so the variable comes too late for
whatever is already imported. Here the decorated functions themselves change what running them means.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

_call, _run = JITFunction.__call__, JITFunction.run


class HostDriver:
    """What Triton asks a driver for, answered for a chip that is described and not present."""

    binary_ext = ""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    @staticmethod
    def is_active() -> bool:
        return True


def _twin(function: Any) -> Any:
    """The interpreted form of a kernel, made once and kept on it: hashing a kernel would walk all it refers to."""
    if not hasattr(function, "interpreted_twin"):
        function.interpreted_twin = InterpretedFunction(function.fn)
    return function.interpreted_twin


def interpret(target: GPUTarget) -> None:
    """Interpret every Triton kernel from now on, as if `target` were the chip."""
    JITFunction.__call__ = lambda self, *args, **kwargs: _twin(self)(*args, **kwargs)
    JITFunction.run = lambda self, *args, **kwargs: _twin(self).run(*args, **kwargs)
    triton.runtime.driver.set_active(HostDriver(target))


def compile_again() -> None:
    """Undo `interpret`; the next launch asks for a real driver."""
    JITFunction.__call__, JITFunction.run = _call, _run
    triton.runtime.driver.set_active(None)
