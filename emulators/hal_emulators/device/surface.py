"""The module `torch.<name>` of an emulated device: what every vendor's torch extension offers under its own name."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

__all__ = ["Chip", "device_module"]

PRIVATE_USE_1 = 20  # c10::DeviceType::PrivateUse1


@dataclass(frozen=True)
class Chip:
    """What a device says of itself. `bytes` is its memory, of which the emulator refuses to allocate more."""

    name: str
    major: int
    minor: int
    bytes: int
    cores: int
    bf16: bool = True


def device_module(name: str, chip: Chip) -> ModuleType:
    """The module, with every function that torch and model code call on a device module."""
    control = torch.ops.hal_device
    module = ModuleType(f"torch.{name}")

    def index(device: Any = None) -> int:
        if device is None:
            return int(control.current_device())
        if isinstance(device, int):
            return device
        found = torch.device(device).index
        return int(control.current_device()) if found is None else found

    class Stream(torch.Stream):
        def __new__(cls, device: Any = None, priority: int = 0, **words: Any) -> Stream:
            return super().__new__(cls, device=torch.device(name, index(device)), priority=priority)

    for each in range(control.device_count()):
        control.limit_memory(each, chip.bytes)
    functions = {
        "is_available": lambda: control.device_count() > 0,
        "device_count": control.device_count,
        "current_device": control.current_device,
        "set_device": lambda device: control.set_device(index(device)),
        "device": lambda device: _Device(index(device)),
        "synchronize": lambda device=None: None,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "is_bf16_supported": lambda: chip.bf16,
        "get_device_name": lambda device=None: chip.name,
        "get_device_capability": lambda device=None: (chip.major, chip.minor),
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "memory_allocated": lambda device=None: control.memory(index(device))[0],
        "memory_reserved": lambda device=None: control.memory(index(device))[0],
        "max_memory_allocated": lambda device=None: control.memory(index(device))[1],
        "reset_peak_memory_stats": lambda device=None: control.reset_peak(index(device)),
        "mem_get_info": lambda device=None: _free(control.memory(index(device))),
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": lambda part, device=None: control.limit_memory(
            index(device), int(part * chip.bytes)
        ),
        "manual_seed": lambda seed: control.seed(index(), int(seed)),
        "manual_seed_all": lambda seed: [control.seed(each, int(seed)) for each in range(control.device_count())],
        "get_rng_state": lambda device=None: control.rng_state(index(device)),
        "set_rng_state": lambda state, device=None: control.set_rng_state(index(device), state),
        "Stream": Stream,
        "Event": lambda enable_timing=False, **words: torch.Event(device=name, enable_timing=enable_timing),
        "current_stream": lambda device=None: torch.accelerator.current_stream(torch.device(name, index(device))),
        "default_stream": lambda device=None: torch.Stream(
            stream_id=0, device_index=index(device), device_type=PRIVATE_USE_1
        ),
        "set_stream": torch.accelerator.set_stream,
        "stream": _OnStream,
        "is_current_stream_capturing": lambda: False,
    }
    for word, function in functions.items():
        setattr(module, word, function)
    sys.modules[module.__name__] = module
    return module


def _free(memory: list[int]) -> tuple[int, int]:
    used, _, _, limit = memory
    return limit - used, limit


class _Device(AbstractContextManager[None]):
    """Makes a device current inside the block; -1 leaves it as it is."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        self.before = torch.ops.hal_device.current_device()
        if self.index >= 0:
            torch.ops.hal_device.set_device(self.index)

    def __exit__(self, *_: object) -> None:
        torch.ops.hal_device.set_device(self.before)


class _OnStream(AbstractContextManager[None]):
    """Makes a stream current inside the block; None leaves it as it is."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.before = torch.accelerator.current_stream(self.stream.device)
            torch.accelerator.set_stream(self.stream)

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            torch.accelerator.set_stream(self.before)
