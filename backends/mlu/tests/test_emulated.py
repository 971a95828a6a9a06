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
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and "skipped" in done.stdout:  # it says what it lacks
        pytest.skip(f"incomplete: {done.stdout.strip()[-300:]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_on_the_newest_operators(file: Path) -> None:
    run(file)


@pytest.mark.parametrize("version", ["1.8.0", "1.5.0", "none"])
def test_older_operators_give_the_same_model(version: str) -> None:
    run(Path(__file__).parent / "emulated" / "check_model.py", EMULATED_TORCH_MLU_OPS=version)


@pytest.mark.parametrize(("card", "kernels"), [("613", 3), ("590", 0)])
def test_float8_is_used_where_a_product_shows_it(card: str, kernels: int) -> None:
    """The names of cards do not say it: a small product is tried, and the vendor's refusal is an answer."""
    code = f"""
from hal.plugins import load
from hal_emulators.mlu import start
found = [kernel.id for kernel in load("mlu").kernels(start("{card}"))]
print(len({{"mlu.matmul.fp8", "mlu.experts.fp8", "mlu.experts.mx"}} & set(found)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str(kernels), done.stderr


def test_float8_products_are_right() -> None:
    for name in ("mlu.*.fp8", "mlu.experts.mx"):
        command = [sys.executable, "-m", "hal", "verify", "mlu:613@emulated", "--quick", "--kernel", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
