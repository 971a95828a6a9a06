"""Processes that are threads, for libraries that exchange rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hal.conformance.samples.experts import EXPERTS
from hal.formats import PackedWeight

RANKS = 4


@dataclass
class Board:
    """Where processes that are threads leave what they send."""

    size: int
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.values: list[Any] = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=30)

    def group(self, rank: int) -> SimpleNamespace:
        def exchange(value: Any) -> list[Any]:
            self.values[rank] = value
            self.barrier.wait()
            taken = list(self.values)
            self.barrier.wait()
            return taken

        process_group = SimpleNamespace(
            rank=lambda: rank, size=lambda: self.size, exchange=exchange, barrier=self.barrier.wait
        )
        return SimpleNamespace(rank=rank, size=self.size, process_group=process_group)


def together(work: Callable[[SimpleNamespace], Any]) -> list[Any]:
    """What each of the processes returns; the first error of any of them is raised."""
    board, results = Board(RANKS), [None] * RANKS
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(board.group(rank))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def local(weight: PackedWeight, rank: int) -> PackedWeight:
    """The experts of one process."""
    own = slice(rank * EXPERTS // RANKS, (rank + 1) * EXPERTS // RANKS)
    assert weight.scales is not None
    return PackedWeight(weight.codes[own], weight.scales[own], weight.scheme, (EXPERTS // RANKS, *weight.shape[1:]))
