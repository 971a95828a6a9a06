"""Expected failures: a TOML file in a backend's package. Strict (one that passes is a failure), dated, and expiring.

[[expected]]
case = "attn.attend/cuda.attend/parity/hca/*"
reason = "the toolchain of 2026-10 miscompiles the visible prefix, vendor/tracker#12"
since = 2026-11-24
until = 2027-02-01
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

from hal.conformance.result import CRASHED, EXPECTED, FAILED, PASSED, Result
from hal.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FILE", "Expectation", "booked", "expectations"]

FILE = "expected_failures.toml"


@dataclass(frozen=True)
class Expectation:
    """Cases that are known to fail between two days, and why."""

    case: str
    reason: str
    since: date
    until: date


def expectations(path: Path) -> tuple[Expectation, ...]:
    """Read a file of expected failures; a file that is not there expects none.

    Raises:
        ConfigError: it cannot be read, or an entry lacks its case, reason or dates.
    """
    if not path.exists():
        return ()
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["expected"]
        found = tuple(Expectation(**entry) for entry in entries)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        fix = "write [[expected]] with case, reason, since and until"
        raise ConfigError(f"cannot read it: {error}", where=str(path), fix=fix) from error
    for entry in found:
        if not (entry.reason and isinstance(entry.since, date) and isinstance(entry.until, date)):
            raise ConfigError(
                f"the expectation of {entry.case} has no reason or no dates", where=str(path), fix="add them"
            )
    return found


def booked(result: Result, expected: tuple[Expectation, ...], today: date) -> Result:
    """The result in the light of what was expected."""
    entry = next((entry for entry in expected if fnmatchcase(result.name, entry.case)), None)
    if entry is None:
        return result
    if result.status == PASSED:
        return replace(result, status=FAILED, text=f"expected to fail ({entry.reason}) but passed: remove the entry")
    if result.status not in (FAILED, CRASHED):
        return result
    if today > entry.until:
        return replace(result, text=f"{result.text} (its expectation expired on {entry.until})")
    return replace(result, status=EXPECTED, text=f"{entry.reason}: {result.text}")
