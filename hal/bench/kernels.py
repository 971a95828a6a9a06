"""Each kernel of a chip alone: seconds of a call, and what part of the machine's measured ceilings that is.

The ceilings are measured in the same run: a copy of memory and a large product. The bytes and operations are what the
call cannot avoid (`hal.bench.work`), so a kernel that moves more shows as slower, not as busier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from statistics import median
from time import perf_counter
from typing import Any

import torch

from hal import plugins
from hal.bench.scale import Scale
from hal.bench.shapes import calls
from hal.bench.work import Work, work
from hal.binding import bind
from hal.conformance.edges import eligible
from hal.conformance.trial import Subject
from hal.target import Target

__all__ = ["Ceilings", "Timed", "ceilings", "kernels"]

COPIED = 1 << 28
"""Bytes of the copy that measures bandwidth; also written between runs, so that no cache keeps a call's arguments."""
SQUARE = {"cpu": (1024, torch.float32)}
"""Side and dtype of the product that measures arithmetic, elsewhere 8192 in bfloat16."""


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at best: bytes and operations per second, measured."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Timed:
    """One kernel on one call.

    Attributes:
        kernel: its id.
        work: what was called.
        seconds: of each run.
        bytes, flops: that the call cannot avoid.
        share: of the machine, 1.0 where the call takes the least time that the ceilings allow.
    """

    kernel: str
    work: str
    seconds: tuple[float, ...]
    bytes: int
    flops: int
    share: float

    @property
    def bandwidth(self) -> float:
        """Unavoidable bytes per second of the median run."""
        return self.bytes / median(self.seconds)

    @property
    def arithmetic(self) -> float:
        """Operations per second of the median run."""
        return self.flops / median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types, rates included."""
        return {**asdict(self), "bandwidth": self.bandwidth, "arithmetic": self.arithmetic}


def ceilings(target: Target, rounds: int = 5) -> Ceilings:
    """Bandwidth of a copy and arithmetic of a product on the target's device."""
    device = target.device_type
    source = torch.ones(COPIED // 4, device=device)
    into = torch.empty_like(source)
    side, dtype = SQUARE.get(device, (8192, torch.bfloat16))
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    copied = min(_timed(device, lambda: into.copy_(source), rounds, cold=False))
    multiplied = min(_timed(device, lambda: left @ right, rounds, cold=False))
    return Ceilings(2 * COPIED / copied, 2 * side**3 / multiplied)


def kernels(target: Target, limits: Ceilings, scale: Scale, *, pattern: str = "*", rounds: int = 5) -> Iterator[Timed]:
    """Every kernel of `target` that fits `pattern`, on every call that it takes."""
    for kernel in plugins.load(target.backend).kernels(target):
        if not fnmatchcase(kernel.id, pattern):
            continue
        for name, sample in calls(scale):
            if sample.contract != kernel.contract or not eligible(kernel, sample.call, target):
                continue
            bound = bind(Subject(kernel, target).plan(sample.call))[sample.call.title]
            arguments = sample.arguments(target.device_type)
            with torch.no_grad():
                done: Work = work(sample.contract, arguments, sample.attributes, bound(*arguments))
                seconds = _timed(target.device_type, lambda: bound(*arguments), rounds)  # noqa: B023
            share = done.seconds(limits.bandwidth, limits.flops) / median(seconds)
            yield Timed(kernel.id, name, seconds, done.bytes, done.flops, share)


def _timed(device: str, run: Callable[[], object], rounds: int, *, cold: bool = True) -> tuple[float, ...]:
    """Seconds of each of `rounds` runs after one that is not counted; with cold caches unless told otherwise."""
    module: Any = torch.get_device_module(device)
    other = torch.empty(COPIED // 4 if cold else 0, device=device)
    run()
    taken = []
    for _ in range(rounds):
        other.fill_(0)
        module.synchronize()
        if device == "cpu":
            begin = perf_counter()
            run()
            taken.append(perf_counter() - begin)
            continue
        first, last = (module.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        module.synchronize()
        taken.append(first.elapsed_time(last) / 1e3)
    return tuple(taken)
