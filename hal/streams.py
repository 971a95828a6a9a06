"""Independent parts of a layer side by side, on side streams of an accelerator.

Fork and join: a side stream waits for the current one before its branch, and the current one waits for all of them at
the end. Memory then needs no care: what a side stream has freed only that stream gives out again, behind its next fork.
What a branch makes once for all (`Batch.derive`, `derived`) carries an event, for which its readers on other streams
wait. The order in which branches are issued is the order in which they run on devices without streams. Nothing here
waits on the host, so that a graph can capture it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Mark", "mark", "overlap"]


@dataclass
class _Region:
    """From a fork to its join."""

    module: Any
    open: bool = True


@dataclass(frozen=True)
class Mark:
    """When something was ready on the stream that made it. Behind the join of its region nobody needs to wait."""

    region: _Region
    event: Any

    def wait(self) -> None:
        """The current stream goes on when it is ready."""
        if self.region.open:
            self.region.module.current_stream().wait_event(self.event)


_region: ContextVar[_Region | None] = ContextVar("hal_region", default=None)
_side: dict[tuple[Any, str], list[Any]] = {}


def overlap(device: torch.device, streams: int, *branches: Callable[[], Any]) -> tuple[Any, ...]:
    """The results of `branches`, none of which needs another's: the first on the current stream, the others beside it.

    Args:
        device: where the tensors are.
        streams: how many side streams may be used; with 0, and inside another `overlap`, one runs after the other.

    A branch that writes what another one reads or writes is a race: `hal_emulators.streams.races` finds them.
    """
    if streams == 0 or len(branches) < 2 or _region.get() is not None:
        return tuple(branch() for branch in branches)
    import torch

    module = torch.get_device_module(device)
    current, side = module.current_stream(), _streams(module, device, min(streams, len(branches) - 1))
    for stream in side:
        stream.wait_stream(current)
    region = _Region(module)
    token = _region.set(region)
    results: list[Any] = []
    try:
        for number, branch in enumerate(branches):
            if number == 0:
                results.append(branch())
                continue
            with module.stream(side[(number - 1) % len(side)]):
                results.append(branch())
    finally:
        for stream in side:
            current.wait_stream(stream)
        region.open = False
        _region.reset(token)
    return tuple(results)


def mark() -> Mark | None:
    """Of what the current stream has been given so far; None where nothing runs beside it."""
    region = _region.get()
    return None if region is None else Mark(region, region.module.current_stream().record_event())


def _streams(module: Any, device: torch.device, count: int) -> list[Any]:
    """The first side streams of a device, made once."""
    made = _side.setdefault((module, str(device)), [])
    while len(made) < count:
        made.append(module.Stream(device))
    return made[:count]
