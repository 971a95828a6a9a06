"""A process has one emulated device: every file of `emulated/` runs in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "emulated").glob("check_*.py"))


def run(file: Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_the_newest_operators(file: Path) -> None:
    run(file)


@pytest.mark.parametrize("version", ["1.8.0", "1.5.0", "none"])
def test_older_operators_give_the_same_model(version: str) -> None:
    run(Path(__file__).parent / "emulated" / "check_model.py", EMULATED_TORCH_MLU_OPS=version)
