"""A device of torch's PrivateUse1 kind under any name, on host memory.

`start("mlu")` gives tensors of device type `mlu`: mixing them with CPU tensors is refused, they have their own memory,
generators, streams and events, and every host round trip is counted. The extension is compiled on first use, without
network, and kept in the cache directory. A process has one such device.

It checks placement, shapes, strides and calls. It does not model asynchronous execution, a chip's rounding, the dtypes
a vendor's kernels lack, or speed.
"""

from __future__ import annotations

from types import ModuleType

import torch

from hal_emulators.device.build import library
from hal_emulators.device.surface import Chip, device_module

__all__ = ["Chip", "start"]

_STARTED: dict[str, ModuleType] = {}


def start(name: str, chip: Chip) -> ModuleType:
    """Bring the device up and return its module, also found as `torch.<name>`.

    Args:
        name: device type, for example "mlu" or "npu".
        chip: what the device says of itself.

    Raises:
        RuntimeError: this process already has a PrivateUse1 device of another name; or no compiler was found.
    """
    if name in _STARTED:
        return _STARTED[name]
    if _STARTED:
        other = next(iter(_STARTED))
        raise RuntimeError(f"this process emulates {other!r} already; use a process of its own for {name!r}")
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend(name)
    module = device_module(name, chip)
    torch._register_device_module(name, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    _STARTED[name] = module
    return module
