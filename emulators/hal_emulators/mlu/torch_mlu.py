"""A stand-in for torch_mlu: the device module `torch.mlu`, devices' properties, the `cncl` process group.

Names follow Cambricon/torch_mlu d578002 (`torch_mlu/__init__.py`, `torch_mlu/mlu/*.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch

from hal_emulators.device import Chip
from hal_emulators.mlu import cncl

__version__ = "1.33.1"

BACKENDS = ("mlu", "cnnl", "mlufusion")


@dataclass(frozen=True)
class DeviceProperties:
    """What `torch.mlu.get_device_properties` gives."""

    name: str
    major: int
    minor: int
    total_memory: int
    cluster_count: int
    core_num_per_cluster: int
    multi_processor_count: int


def install(device: ModuleType, chip: Chip) -> None:
    """Give the device module and torch what importing torch_mlu gives them."""
    cores = 4
    properties = DeviceProperties(chip.name, chip.major, chip.minor, chip.bytes, chip.cores // cores, cores, chip.cores)
    device.get_device_properties = lambda index=None: properties
    device.cncl_stream = device.default_stream
    for name in BACKENDS:
        backend = ModuleType(f"torch.backends.{name}")
        backend.is_available = device.is_available
        setattr(torch.backends, name, backend)
    torch.version.mlu = None
    cncl.register()
