"""Every contract's samples on two backends, or a capture's calls on another backend than the one that it is of.

Both are judged by the reference in float64, and compared with each other. The kernels are those that each backend's
plan gives the call; `hal verify` looks at the others. A call that a side cannot serve is named with its reason, and is
no disagreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hal import ops
from hal.conformance.cases import unlike
from hal.conformance.samples import Sample, samples
from hal.diagnosis.errors import EDGES, Difference, Worst, differences, histogram
from hal.diagnosis.side import Question, Ran, Side, Taken
from hal.numerics import Expectation, Verdict
from hal.numerics.contracts import expect

__all__ = ["Compared", "One", "Parity", "compare", "parities", "planned"]

AGREE, APART, BOTH_WRONG = "agree", "not comparable", "both are wrong"
A_WRONG, B_WRONG = "A is wrong", "B is wrong"


@dataclass(frozen=True)
class Compared:
    """One sample on both sides; a verdict is None where the side did not serve it."""

    contract: str
    sample: str
    ran: tuple[Ran, Ran]
    verdicts: tuple[Verdict | None, Verdict | None]
    difference: Difference | None


@dataclass
class One:
    """One side of a contract.

    Attributes:
        kernels: how many samples each kernel served.
        refused: why samples were not served, and how many each time.
        margin: of the worst sample, 1 is what is allowed.
        guilty: the kernels that were wrong, and in how many samples.
        first: the first wrong sample and the verdict on it.
        errors: counts of elements by size of error, see `hal.diagnosis.errors.EDGES`.
    """

    kernels: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    served: int = 0
    wrong: int = 0
    margin: float = 0.0
    guilty: dict[str, int] = field(default_factory=dict)
    first: str = ""
    errors: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))

    def add(self, sample: str, ran: Ran, verdict: Verdict | None) -> None:
        """Count one sample."""
        if verdict is None:
            _count(self.refused, ran.why)
            return
        self.served += 1
        _count(self.kernels, ran.kernel or "none")
        self.margin = max(self.margin, verdict.margin)
        if not verdict:
            self.wrong += 1
            _count(self.guilty, ran.kernel or "its process")
            self.first = self.first or f"{sample}: {verdict.text}"


@dataclass
class Parity:
    """One contract on both sides.

    Attributes:
        both: samples that both sides served.
        same: of those, samples with the same bits.
        apart: the largest difference of the sides from each other, 1 is what each may err.
        worst: the element with the largest error, and its sample.
    """

    contract: str
    samples: int = 0
    both: int = 0
    same: int = 0
    apart: float = 0.0
    sides: tuple[One, One] = field(default_factory=lambda: (One(), One()))
    worst: Worst | None = None
    worst_sample: str = ""

    @property
    def verdict(self) -> str:
        """Agree, not comparable, or which side is wrong."""
        wrong = tuple(side.wrong > 0 for side in self.sides)
        if any(wrong):
            return BOTH_WRONG if all(wrong) else A_WRONG if wrong[0] else B_WRONG
        return AGREE if self.both else APART

    def add(self, compared: Compared) -> None:
        """Count one sample."""
        self.samples += 1
        for one, ran, verdict in zip(self.sides, compared.ran, compared.verdicts, strict=True):
            one.add(compared.sample, ran, verdict)
        found = compared.difference
        if found is None:
            return
        for one, errors in zip(self.sides, found.errors, strict=True):
            if errors is not None:
                one.errors = [x + y for x, y in zip(one.errors, histogram(errors), strict=True)]
        if found.worst is not None and (self.worst is None or found.worst.error > self.worst.error):
            self.worst, self.worst_sample = found.worst, compared.sample
        if found.apart is not None:
            self.both += 1
            self.same += found.same
            self.apart = max(self.apart, found.apart)


def planned(contracts: Iterable[str], quick: bool = False) -> list[Sample]:
    """The samples that are compared; `quick` takes the largest of each kind."""
    return [
        sample for contract in contracts for sample in (unlike(list(samples(contract))) if quick else samples(contract))
    ]


def compare(sides: tuple[Side | Taken, Side | Taken], wanted: Iterable[Question]) -> Iterator[Compared]:
    """Run and judge calls, one after the other, the two sides at the same time."""
    with ThreadPoolExecutor(2) as pool:
        for sample in wanted:
            running = [pool.submit(side.run, sample) for side in sides]
            expected = expect(sample.contract, sample.arguments(), sample.attributes, layouts=sample.layouts)
            ran = running[0].result(), running[1].result()
            outcomes = [one.outcome(sample.arguments()) for one in ran]
            verdicts = [_verdict(one, expected, outcome) for one, outcome in zip(ran, outcomes, strict=True)]
            served = any(outcome is not None for outcome in outcomes)
            difference = differences(expected, outcomes) if served else None
            yield Compared(sample.contract, sample.title, ran, (verdicts[0], verdicts[1]), difference)


def parities(compared: Iterable[Compared], tell: Callable[[Compared], None] = lambda _: None) -> list[Parity]:
    """What came of each contract, in the order of `hal ops`."""
    found: dict[str, Parity] = {}
    for one in compared:
        found.setdefault(one.contract, Parity(one.contract)).add(one)
        tell(one)
    return [found[name] for name in ops.CONTRACTS if name in found]


def _verdict(ran: Ran, expected: Expectation, outcome: tuple[Any, tuple[Any, ...]] | None) -> Verdict | None:
    if not ran.served:
        return None
    if outcome is None:
        return Verdict(False, "raised", margin=2.0, note=ran.error)
    return expected.judge(*outcome)


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1
