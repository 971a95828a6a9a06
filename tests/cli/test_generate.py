"""`hal generate` on the small checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hal.cli.app import app
from hal.cli.generate import StoppingText

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "tiny-v4"
PROMPT = "The for statement"


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_BACKEND", "cpu")


def generate(*words: str) -> Any:
    words = ("generate", str(CHECKPOINT), "--prompt", PROMPT, "--json", *words)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_streams_text_and_sums_up_on_stderr() -> None:
    words = ["generate", str(CHECKPOINT), "--prompt", PROMPT, "--max-new-tokens", "8"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(PROMPT)
    assert result.stdout.endswith("\n")
    assert "8 tokens in " in result.stderr
    for word in ("tokens/s", "backend cpu", "plan "):
        assert word in result.stderr


def test_json_has_what_the_summary_says() -> None:
    found = generate("--max-new-tokens", "6")
    assert found["tokens"] == 6
    assert found["finish"] == "length"
    assert found["backend"] == "cpu"
    assert len(found["plan"]) == 64


def test_seed_decides_the_text() -> None:
    words = ("--max-new-tokens", "12", "--temperature", "1.0", "--top-p", "0.95")
    texts = [generate(*words, "--seed", seed)["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_drafts_change_nothing_but_steps() -> None:
    plain, drafted = (generate("--max-new-tokens", "24", *extra) for extra in ((), ("--speculative",)))
    assert drafted["text"] == plain["text"]
    assert drafted["drafts"]["tried"] > 0


def test_stops_before_a_text() -> None:
    whole = generate("--max-new-tokens", "24")["text"]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    found = generate("--max-new-tokens", "24", "--stop", stop)
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish"] == "stop"


class Spelled:
    """A token stream whose tokens are given pieces of text."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def add(self, token: int) -> str:
        return self.pieces[token]

    def end(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        (("ab", "cd"), [], "abcd", False),
        (("ab", "cd"), ["bc"], "a", True),
        (("ab", "b", "bc"), ["bbbc"], "a", True),
        (("ab", "b", "bd"), ["bbbc"], "abbbd", False),
        (("x", "y", "END", "z"), ["nothing", "END", "y"], "x", True),
        (("a", ""), ["ab"], "a", False),
        (("ab",), [""], "ab", False),
    ],
)
def test_stopping_text(pieces: tuple[str, ...], stops: list[str], text: str, stopped: bool) -> None:
    written: list[str] = []
    made = StoppingText(Spelled(*pieces), stops, written.append)
    for token in range(len(pieces)):
        made.add(token)
    made.end()
    assert "".join(written) == made.text == text
    assert made.stopped is stopped


def test_a_refused_request_prints_nothing_to_stdout() -> None:
    result = CliRunner().invoke(app, ["generate", str(CHECKPOINT), "--prompt", "x", "--top-p", "0"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "top_p is 0.0" in result.stderr
