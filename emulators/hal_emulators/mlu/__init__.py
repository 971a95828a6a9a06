"""Cambricon MLUs that are not here: a device `mlu`, and stand-ins for torch_mlu and torch_mlu_ops.

`start` is what `HAL_BACKEND=mlu@emulated` calls. What ran here proves the calls: names, argument order, dtypes, shapes,
devices, limits. It proves nothing about the vendor's kernels.

Environment:
    EMULATED_DEVICES: how many devices (2).
    EMULATED_TORCH_MLU_OPS: generation of torch_mlu_ops, "1.12.1" (default), "1.8.0", "1.5.0", or "none".
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from hal.errors import NoDevice
from hal.target import Target, described
from hal_emulators.device import Chip
from hal_emulators.device import start as start_device

__all__ = ["CHIPS", "start"]

GIB = 1 << 30

CHIPS = {
    "590": Chip("MLU590-M9", major=5, minor=0, bytes=96 * GIB, cores=48),
    "613": Chip("MLU (mtp_613)", major=6, minor=1, bytes=96 * GIB, cores=48),
    "370": Chip("MLU370-X4", major=3, minor=7, bytes=24 * GIB, cores=32, bf16=False),
}
"""Cards by the name of their target. The first is the default."""

FLOAT8 = ("613",)
"""Cards that stand for one that multiplies 8-bit floats. torch_mlu_ops takes them; which cards do is not published."""


def start(chip: str) -> Target:
    """Bring up the device `mlu` and its vendor packages in this process; `mlu:590` if `chip` is empty.

    Raises:
        NoDevice: no such card.
        RuntimeError: another PrivateUse1 device was started in this process, or nothing compiles the extension.
    """
    chip = chip or next(iter(CHIPS))
    if chip not in CHIPS:
        raise NoDevice(f"no mlu:{chip} is emulated", where="HAL_BACKEND", fix=f"use one of {', '.join(CHIPS)}")
    from hal_emulators.mlu import torch_mlu
    from hal_emulators.mlu.ops import generation, products

    products.float8(chip in FLOAT8)
    torch_mlu.install(start_device("mlu", CHIPS[chip]), CHIPS[chip])
    sys.modules["torch_mlu"] = torch_mlu
    module = generation(os.environ.get("EMULATED_TORCH_MLU_OPS") or "1.12.1")
    sys.modules["torch_mlu_ops"] = module  # type: ignore[assignment]  # None makes the import fail, as it should
    known = next(target for target in described() if target.name == f"mlu:{chip}")
    return replace(known, present=True, emulated=True)
