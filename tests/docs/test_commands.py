"""Every command of a ```console or ```bash block in the documentation runs and prints what the page says it prints.

In a `console` block a line `$ command` is followed by its output: stdout and stderr, `...` standing for anything, runs
of white space being equal; no output given means any. A `bash` block is one script. A block right behind a line
`<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(console|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Command:
    """A command, what the page says it prints, and where."""

    script: str
    output: str
    where: str


def commands(text: str, page: str) -> Iterator[Command]:
    """The commands of a page that are to be run."""
    for block in BLOCK.finditer(text):
        skipped, kind, body = block.groups()
        where = f"{page}:{text.count(chr(10), 0, block.start(3)) + 1}"
        if skipped:
            continue
        if kind == "bash":
            yield Command(body, "", where)
            continue
        assert body.startswith("$ "), f"{where}: a console block begins with `$ `"
        for number, part in enumerate(re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]):
            script, output = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
            yield Command(script, output, f"{where}#{number}" if number else where)


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script from the root of the repository, with this Python's commands first on the path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "COLUMNS": "120", "TERM": "dumb"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


FOUND = [command for page in PAGES for command in commands(page.read_text(), str(page.relative_to(ROOT)))]


@pytest.mark.parametrize("command", FOUND, ids=lambda command: command.where)
def test_command(command: Command) -> None:
    done = run(command.script)
    assert done.returncode == 0, f"{command.where}: `{command.script.strip()}` failed\n{done.stdout}"
    same = not command.output or doctest.OutputChecker().check_output(command.output, done.stdout, SAME)
    assert same, f"{command.where}: `{command.script.strip()}` printed\n{done.stdout}"


def test_readme_has_commands() -> None:
    assert any(command.where.startswith("README.md") for command in FOUND)


def test_reading_a_page() -> None:
    page = "```console\n$ echo a \\\n  b\na b\n$ true\n```\n"
    page += "<!-- not run: long -->\n```bash\nfalse\n```\n```bash\ntrue\n```\n"
    assert list(commands(page, "p")) == [
        Command("echo a \\\n  b\n", "a b\n", "p:2"),
        Command("true\n", "", "p:2#1"),
        Command("true\n", "", "p:12"),
    ]
