"""Hunt the mutants: run the suite on each until the first case that catches it, and on the honest copies to the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hal.conformance.mutants.planted import Mutant
from hal.conformance.result import PASSED, Result
from hal.conformance.worker import Worker

__all__ = ["Caught", "hunt"]

SETUP = "hal.conformance.mutants:install"


@dataclass(frozen=True)
class Caught:
    """What the suite said of a mutant: the case that caught it, or None."""

    mutant: Mutant
    by: Result | None
    cases: int

    @property
    def right(self) -> bool:
        """A bug is caught, an honest kernel is not."""
        return (self.by is not None) == bool(self.mutant.issue)


def hunt(mutants: tuple[Mutant, ...], quick: bool = False, limit: float = 60.0) -> Iterator[Caught]:
    """The suite's word on each."""
    for mutant in mutants:
        with Worker(mutant.name, limit=limit, setup=SETUP) as worker:
            names = worker.list(quick).kernels[0].cases
            bad = (result for name in names if (result := worker.run(name)).status != PASSED)
            yield Caught(mutant, next(bad, None), len(names))
