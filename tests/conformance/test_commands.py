"""`hal verify` and `hal replay case`: the account comes last, the exit code follows it, a failure can be run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hal import evidence
from hal.cli.app import app


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes this user's evidence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout


def test_the_account_is_last_and_green_is_zero() -> None:
    code, said = run("verify", "cpu", "--quick", "--kernel", "cpu.combine")
    assert code == 0
    assert said.strip().splitlines()[-1].startswith("1 kernels, ")
    assert said.strip().endswith("passed: green")
    assert evidence.of_backend("cpu") == ()


def test_what_the_user_prefers_does_not_choose_what_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_OPS", "moe.combine=!cpu.combine")
    monkeypatch.setenv("HAL_CONFIG", "no such file")
    assert run("verify", "cpu", "--quick", "--kernel", "cpu.combine")[0] == 0
    monkeypatch.setenv("HAL_OPPS", "")
    assert run("verify", "cpu", "--quick", "--kernel", "cpu.combine")[0] == 2


def test_a_full_run_of_a_kernel_is_evidence() -> None:
    code, said = run("verify", "cpu", "--kernel", "cpu.combine", "--json")
    assert code == 0
    words = json.loads(said)
    assert (words["verdict"], words["bad"], words["emulated"]) == ("green", [], False)
    (record,) = evidence.of_backend("cpu")
    assert (record.kernel, record.tier, record.counts["passed"]) == ("cpu.combine", "verified", words["cases"])
    backends = json.loads(run("backends", "--json")[1])
    tiers = next(each["tiers"] for each in backends if each["name"] == "cpu")
    assert (tiers["verified"], tiers["declared"]) == (1, 12)


def test_a_part_of_a_run_is_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    assert run("verify", "cpu", "-k", "combine/parity", "--evidence", str(path))[0] == 0
    assert {record.tier for record in evidence.read(path)} == {"declared"}


def test_nothing_selected_is_not_green() -> None:
    code, said = run("verify", "cpu", "-k", "no such case", "--quick")
    assert code == 1
    assert said.strip().endswith("incomplete")


def test_a_case_runs_again_by_its_name() -> None:
    name = "moe.combine/cpu.combine/law/strides/spread/tokens=33/residual=True/align=16/std=1"
    code, said = run("replay", "case", name, "--backend", "cpu", "--json")
    assert code == 0
    assert json.loads(said)["passed"] is True
    assert run("replay", "case", name + "x", "--backend", "cpu")[0] == 2


def test_a_failure_prints_the_line_that_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.py").write_text(
        "from hal.kernel import Kernel\nfrom hal.plugins import hookimpl\nfrom hal.target import Backend, Target\n"
        "@hookimpl\ndef hal_backend(): return Backend('wrong', 'hal-wrong', 'cpu')\n"
        "@hookimpl\ndef hal_targets(): return [Target('wrong', 'cpu')]\n"
        "@hookimpl\ndef hal_kernels(target): return [Kernel('wrong.combine', 'moe.combine', 'wrong:combine')]\n"
        "def combine(rows, dispatched, residual): return rows.new_ones(dispatched.tokens, rows.shape[1])\n"
    )
    (tmp_path / "hal_wrong-1.0.dist-info").mkdir()
    (tmp_path / "hal_wrong-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: w\nVersion: 1\n")
    (tmp_path / "hal_wrong-1.0.dist-info" / "entry_points.txt").write_text("[hal.backends]\nwrong = wrong\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, said = run("verify", "wrong", "--quick", "-k", "parity")
    assert code == 1
    line = next(line for line in said.splitlines() if "hal replay case" in line)
    name = line.split("'")[1]
    assert line.strip() == f"hal replay case '{name}' --backend wrong"
    again, told = run("replay", "case", name, "--backend", "wrong")
    assert again == 1
    assert "parity: " in told
