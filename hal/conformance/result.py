"""What became of one case."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CRASHED", "EXPECTED", "FAILED", "PASSED", "SKIPPED", "STATUSES", "Listed", "Result"]

PASSED, FAILED, EXPECTED, CRASHED, SKIPPED = STATUSES = ("passed", "failed", "expected", "crashed", "skipped")


@dataclass(frozen=True)
class Result:
    """`status` is one of `STATUSES`; a crashed case's text says how: by a signal, by exiting, by hanging.

    margin: of the judge, 1 is the bound; None where the case has none.
    """

    name: str
    status: str
    text: str = ""
    seconds: float = 0.0
    margin: float | None = None

    @property
    def kernel(self) -> str:
        """The kernel's id."""
        return self.name.split("/")[1]

    @property
    def good(self) -> bool:
        """Passed, or failed as somebody expected."""
        return self.status in (PASSED, EXPECTED)


@dataclass(frozen=True)
class Listed:
    """A kernel and the names of its cases."""

    kernel: str
    contract: str
    version: int
    contract_version: int
    cases: tuple[str, ...]
