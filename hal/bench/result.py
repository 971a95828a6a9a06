"""What a comparison measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Interleaved runs of the same work by `hal` and a peer.

    Attributes:
        work: what was run, for people.
        peer: whom against.
        seconds: wall-clock seconds of each run by `hal`.
        peer_seconds: of each run by the peer; run `i` of both was made one after the other.
        threads: of torch, in both.
        difference: largest absolute difference of the logits that both computed.
    """

    work: str
    peer: str
    seconds: tuple[float, ...]
    peer_seconds: tuple[float, ...]
    threads: int
    difference: float

    @property
    def ratio(self) -> float:
        """How many times faster `hal` is: the median over pairs of neighbouring runs."""
        return median(theirs / ours for ours, theirs in zip(self.seconds, self.peer_seconds, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types, the ratio included."""
        return {**asdict(self), "ratio": self.ratio}


def interleaved(rounds: int, *runs: Callable[[], object]) -> list[tuple[float, ...]]:
    """Seconds of `rounds` runs of each function, taken in turns: one tuple per function."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, seconds in zip(runs, taken, strict=True):
            begin = perf_counter()
            run()
            seconds.append(perf_counter() - begin)
    return [tuple(seconds) for seconds in taken]
