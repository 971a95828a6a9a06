"""`hal bench overhead`: what a bound call costs over calling the function.

The function is the kernel of a tiny `moe.route` call, run as itself, through `hal.bind`, and as a `torch.library.custom_op`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter_ns
from typing import Any
