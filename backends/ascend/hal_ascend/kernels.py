"""What this backend's kernels can do, best first: adapters onto torch_npu's operators, plain torch behind them."""

from __future__ import annotations

import hal_plain.declared as plain

from hal.kernel import Kernel
from hal.target import Target
from hal_ascend.layouts import ACTIVATIONS, DTYPES, PLAIN, WEIGHTS, chip_of

__all__ = ["kernels"]


def kernels(target: Target) -> list[Kernel]:
    """Kernels for a chip."""
    chip = chip_of(target.name)
    return plain.kernels(
        "ascend",
        dtypes=DTYPES,
        caches=chip.all_caches if chip else PLAIN,
        index=chip.all_index if chip else PLAIN,
        weights=WEIGHTS,
        activations=ACTIVATIONS,
    )
