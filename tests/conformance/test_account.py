"""The account adds up or says that it does not; expectations are strict and expire."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from hal.conformance.account import Account
from hal.conformance.expected import booked, expectations
from hal.conformance.result import CRASHED, EXPECTED, FAILED, PASSED, Listed, Result
from hal.errors import ConfigError

NAMES = tuple(f"moe.route/cpu.route/parity/{i}" for i in range(4))
LISTED = [Listed("cpu.route", "moe.route", 1, 1, NAMES)]


def account(*statuses: str) -> Account:
    return Account.of(LISTED, [Result(name, status) for name, status in zip(NAMES, statuses, strict=False)])


def test_every_planned_case_is_counted_once() -> None:
    whole = account(PASSED, PASSED, EXPECTED, PASSED)
    assert whole.words == "1 kernels, 4 = 3 passed + 1 expected: green"
    assert sum(whole.counts.values()) == whole.planned == 4


@pytest.mark.parametrize("bad", [FAILED, CRASHED])
def test_one_failure_is_a_failure(bad: str) -> None:
    assert account(PASSED, PASSED, PASSED, bad).verdict == "failed"


def test_a_case_without_an_end_is_skipped_and_incomplete() -> None:
    short = account(PASSED, PASSED, PASSED)
    assert short.words == "1 kernels, 4 = 3 passed + 1 skipped: incomplete"
    assert account().verdict == "incomplete"
    assert Account.of([], []).verdict == "incomplete"


def test_nothing_is_booked_twice_or_unplanned() -> None:
    with pytest.raises(ValueError, match="two results"):
        Account.of(LISTED, [Result(NAMES[0], PASSED)] * 2)
    with pytest.raises(ValueError, match="not planned"):
        Account.of(LISTED, [Result("moe.route/other/parity/0", PASSED)])


FILE = """
[[expected]]
case = "moe.route/cpu.route/parity/[01]"
reason = "vendor/tracker#12"
since = 2026-11-24
until = 2026-12-24
"""


def test_expected_failures_are_strict_dated_and_expire(tmp_path: Path) -> None:
    path = tmp_path / "expected_failures.toml"
    assert expectations(path) == ()
    path.write_text(FILE)
    known, today = expectations(path), date(2026, 12, 1)
    failed = Result(NAMES[0], FAILED, "parity: off")
    assert booked(failed, known, today).status == EXPECTED
    assert "tracker#12" in booked(failed, known, today).text
    assert booked(Result(NAMES[1], CRASHED, "crashed: SIGSEGV"), known, today).status == EXPECTED
    strict = booked(Result(NAMES[0], PASSED), known, today)
    assert (strict.status, "but passed" in strict.text) == (FAILED, True)
    late = booked(failed, known, date(2026, 12, 25))
    assert (late.status, "expired on 2026-12-24" in late.text) == (FAILED, True)
    assert booked(Result(NAMES[3], FAILED), known, today).status == FAILED


UNDATED = "[[expected]]\ncase = 'a'\nreason = 'b'\nsince = 2026-11-24\n"


@pytest.mark.parametrize("text", [UNDATED, "[[expected]", FILE.replace("vendor/tracker#12", "")])
def test_an_expectation_needs_reason_and_dates(tmp_path: Path, text: str) -> None:
    path = tmp_path / "expected_failures.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected_failures"):
        expectations(path)
