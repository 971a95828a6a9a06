"""The package of docs/authoring.md, installed as the page writes it: it plans, verifies and runs the model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "authoring.md").read_text(encoding="utf-8")


def block(title: str) -> str:
    """The fenced block of the page with this title."""
    found = re.search(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found.group(1)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An environment that sees this one's packages, with nothing of ACME in it yet."""
    folder = tmp_path_factory.mktemp("acme")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    here = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "here.pth").write_text("".join(f"import site; site.addsitedir({entry!r})\n" for entry in here))
    package = folder / "hal-acme"
    package.mkdir()
    for name in ("pyproject.toml", "hal_acme.py"):
        (package / name).write_text(block(name))
    scripts = folder / "venv" / "bin"
    for command in ("pip", "hal"):
        module = "pip" if command == "pip" else "hal"
        (scripts / command).write_text(f'#!/bin/sh\nexec "{scripts}/python" -m {module} "$@"\n')
        (scripts / command).chmod(0o755)
    (folder / "examples").symlink_to(ROOT / "examples")
    env = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")}
    env |= {"PATH": f"{scripts}{os.pathsep}{env['PATH']}", "COLUMNS": "120", "XDG_CACHE_HOME": str(folder / "cache")}
    return folder, env


def test_every_command_of_the_page(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    said = {}
    for command in block("commands").strip().splitlines():
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command.split(" ")[1]] = done.stdout + done.stderr
    assert "acme.route" in said["explain"]
    assert "green" in said["verify"]
    generated = next(text for command, text in said.items() if command.startswith("HAL_ALLOW"))
    assert generated.startswith("The for")
    assert "backend acme" in generated


def test_without_the_references_every_missing_call_is_listed(environment: tuple[Path, dict[str, str]]) -> None:
    folder, env = environment
    command = "HAL_BACKEND=acme hal generate examples/tiny-v4 --prompt x --max-new-tokens 1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    for contract in (
        "attn.attend",
        "attn.index_scores",
        "attn.store",
        "moe.dispatch",
        "quant.matmul",
        "HAL_ALLOW=reference",
    ):
        assert contract in done.stderr
    assert "moe.route" not in done.stderr
