"""A tier follows from dated records and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hal import evidence
from hal.errors import ConfigError
from hal.evidence import Record, tier
from hal.kernel import Kernel
from hal.target import Target

KERNEL = Kernel("cuda.route", "moe.route", "m:f", version=2)
CHIP = Target("cuda:sm90", "cuda")
GREEN = Record(
    "cuda.route", 2, "moe.route", 1, "cuda:sm90", "chip", "2026-11-24", "0.1.0", {"passed": 5, "failed": 0}, True, 0.4
)


def test_what_a_record_is_worth() -> None:
    assert tier(KERNEL, CHIP, []) == "declared"
    assert tier(KERNEL, CHIP, [GREEN]) == "verified"
    assert tier(KERNEL, CHIP, [replace(GREEN, how="emulated")]) == "emulated"
    assert tier(KERNEL, CHIP, [replace(GREEN, how="schema")]) == "schema-checked"
    assert tier(KERNEL, CHIP, [replace(GREEN, complete=False)]) == "declared"
    assert tier(KERNEL, CHIP, [replace(GREEN, counts={"passed": 5, "skipped": 1})]) == "declared"
    assert tier(KERNEL, CHIP, [replace(GREEN, counts={"passed": 0})]) == "declared"
    for end in ("failed", "crashed", "expected"):
        assert tier(KERNEL, CHIP, [replace(GREEN, counts={"passed": 5, end: 1})]) == "failed"


def test_an_emulated_pass_never_says_verified() -> None:
    emulated = replace(GREEN, how="emulated", date="2027-01-01")
    assert tier(KERNEL, CHIP, [emulated, replace(GREEN, how="schema")]) == "emulated"


@pytest.mark.parametrize("other", [{"version": 1}, {"contract_version": 2}, {"target": "cuda:sm100"}, {"kernel": "x"}])
def test_records_of_something_else_are_void(other: dict[str, object]) -> None:
    assert tier(KERNEL, CHIP, [replace(GREEN, **other)]) == "declared"  # type: ignore[arg-type]


def test_the_newest_failure_counts_and_older_ones_are_forgiven() -> None:
    failed = replace(GREEN, counts={"passed": 4, "failed": 1}, how="emulated")
    assert tier(KERNEL, CHIP, [GREEN, replace(failed, date="2026-11-25")]) == "failed"
    assert tier(KERNEL, CHIP, [GREEN, replace(failed, date="2026-11-23")]) == "verified"


def test_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "evidence.json"
    assert evidence.read(path) == ()
    evidence.write(path, [GREEN])
    newer = replace(GREEN, date="2026-11-25")
    evidence.write(path, [newer, replace(GREEN, how="emulated")])
    assert list(evidence.read(path)) == [newer, replace(GREEN, how="emulated")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda words: "not json",
        lambda words: json.dumps([]),
        lambda words: json.dumps({**words, "format": 2}),
        lambda words: json.dumps({**words, "records": [{**words["records"][0], "how": "verified"}]}),
        lambda words: json.dumps({**words, "records": [{**words["records"][0], "date": "yesterday"}]}),
        lambda words: json.dumps({**words, "records": [{**words["records"][0], "counts": {"passed": -1}}]}),
        lambda words: json.dumps({**words, "records": [{**words["records"][0], "version": "2"}]}),
        lambda words: json.dumps({**words, "records": [{**words["records"][0], "tier": "verified"}]}),
    ],
)
def test_corrupted_evidence_is_a_named_error(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "evidence.json"
    evidence.write(path, [GREEN])
    path.write_text(damage(json.loads(path.read_text())))  # type: ignore[operator]
    with pytest.raises(ConfigError, match="cannot be read"):
        evidence.read(path)


def test_corrupted_evidence_is_shown_and_harms_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hal.cli.backends import states

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    evidence.cached("cpu").parent.mkdir(parents=True)
    evidence.cached("cpu").write_text("{")
    found = {state.name: state for state in states()}
    assert found["cpu"].state == "ConfigError"
    assert "cpu.json" in found["cpu"].why
    assert len(found) > 1
