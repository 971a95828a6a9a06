"""Verify a backend: list its cases in a worker, run each kernel in a process of its own, book every end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version as installed

from hal.conformance.account import Account
from hal.conformance.expected import FILE, booked, expectations
from hal.conformance.inside import Found
from hal.conformance.result import Listed, Result
from hal.conformance.worker import LIMIT, Worker
from hal.evidence import Record, package_of

__all__ = ["Run", "fits"]


def fits(name: str, pattern: str) -> bool:
    """Whether a case's name holds `pattern`, or matches it as a glob."""
    return pattern in name or fnmatchcase(name, pattern)


@dataclass(frozen=True)
class Run:
    """A planned run of a backend's cases.

    Args of `plan`:
        backend: as in HAL_BACKEND.
        kernel: glob on ids.
        select: text or glob on case names.
        quick: few samples of each kind.
        limit: seconds per case.
    """

    backend: str
    found: Found
    limit: float = LIMIT

    @classmethod
    def plan(
        cls, backend: str, *, kernel: str = "*", select: str = "", quick: bool = False, limit: float = LIMIT
    ) -> Run:
        """List the cases.

        Raises:
            BackendError: the backend cannot be used; the text says whether it raised, hung, crashed or exited.
        """
        with Worker(backend, kernel, limit) as worker:
            found = worker.list(quick)
        kept = (replace(k, cases=tuple(c for c in k.cases if fits(c, select))) for k in found.kernels)
        return cls(backend, replace(found, kernels=tuple(k for k in kept if k.cases or not select)), limit)

    @property
    def kernels(self) -> tuple[Listed, ...]:
        """Kernels and the cases that were selected."""
        return self.found.kernels

    @property
    def planned(self) -> int:
        """Cases."""
        return sum(len(listed.cases) for listed in self.kernels)

    def results(self) -> Iterator[Result]:
        """Run every case."""
        package = package_of(self.found.target.split(":")[0])
        expected = expectations(package / FILE) if package else ()
        for listed in self.kernels:
            with Worker(self.backend, listed.kernel, self.limit) as worker:
                for name in listed.cases:
                    yield booked(worker.run(name), expected, date.today())

    def account(self, results: list[Result]) -> Account:
        """The account of those results."""
        return Account.of(self.kernels, results)

    def records(self, account: Account, *, complete: bool) -> Iterator[Record]:
        """Evidence of every kernel of the run; `complete` says that nothing was left out of its plan."""
        versions = {listed.kernel: listed for listed in self.kernels}
        how = "emulated" if self.found.emulated else "chip"
        for line in account.lines:
            listed = versions[line.kernel]
            margins = [r.margin for r in account.results.values() if r.kernel == line.kernel and r.margin is not None]
            yield Record(
                line.kernel,
                listed.version,
                line.contract,
                listed.contract_version,
                self.found.target,
                how,
                date.today().isoformat(),
                installed("hal-accel"),
                dict(line.counts),
                complete,
                max(margins, default=0.0),
            )

    def replay(self, name: str) -> str:
        """The command that runs one case again."""
        return f"hal replay case '{name}' --backend {self.backend}"
