"""`hal bench overhead`: what a bound call costs over calling the function.

The same kernel function, that of a tiny `moe.route`, called as itself, through `hal.bind`, and as a `torch.library.custom_op`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ATTRIBUTES: dict[str, Any] = {"top_k": 2, "scoring": "sigmoid", "scale": 1.0}


@dataclass(frozen=True)
class Overhead:
    """Microseconds per call: medians over interleaved runs of many calls each.

    Attributes:
        kernel: whose function it is.
        function: called as itself.
        bound: through `hal.bind`.
        custom_op: through `torch.library.custom_op`.
    """

    kernel: str
    function: float
    bound: float
    custom_op: float

    def to_dict(self) -> dict[str, Any]:
        """All of it, and both costs over the function itself."""
        return {
            **asdict(self),
            "bound_overhead": self.bound - self.function,
            "custom_op_overhead": self.custom_op - self.function,
        }


def overhead(*, calls: int = 1000, rounds: int = 25, backend: str | None = None) -> Overhead:
    """Time one token's routing among eight experts in all three ways.

    Args:
        calls: calls per run.
        rounds: runs of each way, taken in turns.
        backend: as `HAL_BACKEND`.
    """
