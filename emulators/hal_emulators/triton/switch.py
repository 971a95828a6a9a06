"""Turn Triton into its interpreter, also where it is already imported.

Triton reads TRITON_INTERPRET when a kernel is decorated, its own library included, so setting the variable after
`import triton` leaves functions behind that cannot be interpreted. `interpret` converts them in place.
"""

from __future__ import annotations

import gc
import os

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction


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


def interpret(target: GPUTarget) -> None:
    """Interpret every Triton kernel from now on, as if `target` were the chip."""
    os.environ["TRITON_INTERPRET"] = "1"
    for function in gc.get_objects():
        if type(function) is JITFunction:
            python = function.fn
            function.__class__ = InterpretedFunction
            InterpretedFunction.__init__(function, python)
    triton.runtime.driver.set_active(HostDriver(target))
