"""One run of a command: how it ended in words, its time limit, and trace lines that were cut short."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hal.cli.app import app
from hal.diagnosis.command import Command
from hal.errors import ConfigError


def shell(script: str, limit: float | None = None) -> Command:
    return Command(["sh", "-c", script], limit)


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [("exit 3", 3, "exit code 3"), ("kill -SEGV $$", -11, "died of SIGSEGV"), ("true", 0, "exit code 0")],
)
def test_how_it_ended(script: str, code: int, says: str) -> None:
    ended = shell(script).run({})
    assert (ended.code, ended.says) == (code, says)


def test_variables_outputs_and_trace() -> None:
    script = (
        """echo "$HAL_OPS"; echo 'first\n\nlast\n' >&2; file=${HAL_TRACE#*@}; printf '{"a": 1}\n{"b": ' > "$file" """
    )
    ended = shell(script).run({"HAL_OPS": "moe.*=x"})
    assert (ended.stdout, ended.last, ended.trace) == (b"moe.*=x\n", "last", ({"a": 1},))


def test_the_time_limit_ends_all_that_was_started(tmp_path: Path) -> None:
    began = time.perf_counter()
    ended = shell(f"sleep 60 & echo $! > {tmp_path}/pid; wait", limit=0.5).run({})
    assert ended.code is None
    assert ended.says.startswith("stopped after")
    assert time.perf_counter() - began < 20
    child = Path(f"/proc/{int((tmp_path / 'pid').read_text())}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cannot run 'no-such-program'"):
        Command(["no-such-program"]).run({})


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("import sys; sys.exit('no model')", 1, "no operator of hal was planned (exit code 1: no model)."),
        ("", 1, "As it is the command is good: exit code 0."),
    ],
)
def test_a_command_without_operators(script: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    result = CliRunner().invoke(app, ["bisect", "--", sys.executable, "-c", script])
    assert result.exit_code == code
    assert says in result.stdout
    assert os.environ.get("HAL_TRACE") is None
