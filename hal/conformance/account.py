"""The account of a run: every planned case has one end, and the numbers add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hal.conformance.result import CRASHED, FAILED, PASSED, SKIPPED, STATUSES, Listed, Result

__all__ = ["Account", "Line"]


@dataclass(frozen=True)
class Line:
    """One kernel: how many of its planned cases ended how. A planned case without a result is skipped."""

    kernel: str
    contract: str
    planned: int
    counts: dict[str, int]

    @property
    def words(self) -> str:
        """`412 = 305 passed + 1 crashed`."""
        ends = " + ".join(f"{self.counts[status]} {status}" for status in STATUSES if self.counts[status])
        return f"{self.planned} = {ends or 0}"


@dataclass(frozen=True)
class Account:
    """Lines of all kernels."""

    lines: tuple[Line, ...]
    results: dict[str, Result] = field(repr=False)

    @classmethod
    def of(cls, planned: Iterable[Listed], results: Iterable[Result]) -> Account:
        """Book results under the kernels they were planned for.

        Raises:
            ValueError: a case ended twice, or was never planned.
        """
        ends: dict[str, Result] = {}
        for result in results:
            if result.name in ends:
                raise ValueError(f"{result.name} has two results")
            ends[result.name] = result
        planned = list(planned)
        unknown = set(ends) - {name for listed in planned for name in listed.cases}
        if unknown:
            raise ValueError(f"results of cases that were not planned: {sorted(unknown)[:3]}")
        lines = []
        for listed in planned:
            found = Counter(ends[name].status if name in ends else SKIPPED for name in listed.cases)
            counts = {status: found[status] for status in STATUSES}
            lines.append(Line(listed.kernel, listed.contract, len(listed.cases), counts))
        return cls(tuple(lines), ends)

    @property
    def counts(self) -> dict[str, int]:
        """How many cases ended how."""
        return {status: sum(line.counts[status] for line in self.lines) for status in STATUSES}

    @property
    def planned(self) -> int:
        """Cases planned."""
        return sum(line.planned for line in self.lines)

    @property
    def verdict(self) -> str:
        """`green`, `failed`, or `incomplete` where a case was skipped or a kernel has no case that ran a sample."""
        counts = self.counts
        if counts[FAILED] or counts[CRASHED]:
            return "failed"
        idle = [line for line in self.lines if not line.counts[PASSED]]
        return "incomplete" if counts[SKIPPED] or idle or not self.lines else "green"

    @property
    def words(self) -> str:
        """One line that adds up."""
        total = Line("", "", self.planned, self.counts).words
        return f"{len(self.lines)} kernels, {total}: {self.verdict}"
