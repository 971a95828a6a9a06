"""Huawei Ascend chips that are not here: the real torch_npu on stand-ins for CANN's libraries.

`start` is what `HAL_BACKEND=ascend:a3@emulated` calls. A call goes through Huawei's own Python, operator schema, C++
checks, output allocation and argument packing; only what CANN's binary kernels compute is ours. What ran here proves
the calls; it proves nothing about those kernels or their speed.

Environment:
    EMULATED_DEVICES: how many devices (2).
    EMULATED_CANN_WITHOUT: aclnn operators, separated by commas, that this CANN does not have, as an older one.
    TASK_QUEUE_ENABLE: torch_npu's queue; 0 unless set.
"""

from __future__ import annotations

import ctypes as C
import io
import os
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

from hal.errors import NoDevice
from hal.target import Target, described

__all__ = ["CHIPS", "Chip", "start"]

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """What the emulated runtime says of itself. `bytes` is a device's memory, of which it refuses to allocate more."""

    soc: str
    cube_cores: int
    vector_cores: int
    bytes: int
    cann: str = "9.1.0"


CHIPS = {
    "a3": Chip("Ascend910_9391", 24, 48, 64 * GIB),
    "a2": Chip("Ascend910B3", 20, 40, 64 * GIB),
    "a5": Chip("Ascend950PR_9599", 32, 64, 128 * GIB),
}
"""Chips by the name of their target. The first is the default."""

_STARTED: list[str] = []


class _Chip(C.Structure):
    _fields_ = (
        ("soc", C.c_char_p),
        ("version", C.c_char_p),
        ("devices", C.c_int32),
        ("cube_cores", C.c_int32),
        ("vector_cores", C.c_int32),
        ("bytes", C.c_uint64),
    )


def start(chip: str = "") -> Target:
    """Load the stand-ins, import torch_npu and give its operators kernels; `ascend:a3` if `chip` is empty.

    Raises:
        NoDevice: no such chip.
        RuntimeError: torch_npu is not installed, was imported before, or this process emulates another chip.
    """
    chip = chip or next(iter(CHIPS))
    if chip not in CHIPS:
        raise NoDevice(f"no ascend:{chip} is emulated", where="HAL_BACKEND", fix=f"use one of {', '.join(CHIPS)}")
    if _STARTED and _STARTED[0] != chip:
        raise RuntimeError(f"this process emulates {_STARTED[0]} already; use a process of its own for {chip}")
    if not _STARTED:
        _bring_up(CHIPS[chip])
        _STARTED.append(chip)
    known = next(target for target in described() if target.name == f"ascend:{chip}")
    return replace(known, present=True, emulated=True)


def _bring_up(chip: Chip) -> None:
    """Libraries first: whoever imports torch_npu finds them loaded under the names it links."""
    from hal_emulators.cann import build

    os.environ.setdefault("TASK_QUEUE_ENABLE", "0")
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    without = frozenset(filter(None, os.environ.get("EMULATED_CANN_WITHOUT", "").split(",")))
    loaded = {name: C.CDLL(str(path), C.RTLD_GLOBAL) for name, path in build.libraries(without).items()}
    runtime = loaded["libascendcl.so"]
    devices = int(os.environ.get("EMULATED_DEVICES", "2"))
    runtime.hal_cann_configure(
        C.byref(_Chip(chip.soc.encode(), chip.cann.encode(), devices, chip.cube_cores, chip.vector_cores, chip.bytes))
    )
    with redirect_stdout(io.StringIO()):  # it says that CANN is not where its set_env.sh would say
        import torch_npu  # noqa: F401

    from hal_emulators.cann import aten, calls, custom, kernels  # noqa: F401

    aten.install()
    custom.install()
    calls.serve(loaded["libopapi.so"], runtime)
