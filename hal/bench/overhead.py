"""`hal bench overhead`: what a bound call costs over calling the function.

The same kernel function, that of a tiny `moe.route`, called as itself, through `hal.bind`, and as a
`torch.library.custom_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from hal.bench.result import interleaved

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
    import torch

    import hal
    from hal.binding import bind
    from hal.planning import plan

    policy = hal.Policy.current(backend=backend)
    made = plan([hal.Call("moe.route", sizes={"experts": 8}, attributes=ATTRIBUTES)], policy=policy)
    kernel = made.choices[0].kernels[0]
    function = kernel.load()
    (bound,) = bind(made).values()
    device = made.target.device_type
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).to(device)

    wrapped = torch.library.custom_op(
        "hal_bench::route",
        lambda scores: function(scores, None, None, None, **ATTRIBUTES),
        mutates_args=(),
        schema="(Tensor scores) -> (Tensor, Tensor)",
    )
    ways = (
        lambda: function(logits, None, None, None, **ATTRIBUTES),
        lambda: bound(logits, None, None, None),
        lambda: wrapped(logits),
    )
    with torch.inference_mode():
        times = interleaved(rounds, *(partial(_repeat, way, calls) for way in ways))
    return Overhead(kernel.id, *(1e6 * median(seconds) / calls for seconds in times))


def _repeat(way: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        way()
