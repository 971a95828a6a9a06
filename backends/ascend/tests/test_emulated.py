"""The real torch_npu on the emulated CANN, in an environment of its own: with torch_npu installed, `import torch` needs
CANN or its stand-ins. A process emulates one chip."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYTHON = Path(os.environ.get("ASCEND_PYTHON", ROOT / ".venv-ascend" / "bin" / "python"))
CHIPS = ("a2", "a3", "a5")


@cache
def installed() -> bool:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch_npu') is None)"
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", look]).returncode == 0


def run(file: str, chip: str, **environment: str) -> None:
    if not installed():
        pytest.skip("incomplete: torch_npu is not installed; `make .venv-ascend` installs it")
    command = [str(PYTHON), "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
    words = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "EMULATED_CHIP": chip, **environment}
    words.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [*command, str(HERE / "emulated" / file)], capture_output=True, text=True, env=words, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("chip", CHIPS)
def test_every_call(chip: str) -> None:
    run("check_calls.py", chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_products_and_the_model(chip: str) -> None:
    run("check_products.py", chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_no_host_round_trip(chip: str) -> None:
    run("check_host.py", chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_fake_tensors(chip: str) -> None:
    run("check_fake.py", chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_several_streams(chip: str) -> None:
    run("check_streams.py", chip)


def test_device() -> None:
    run("check_device.py", "a3", TASK_QUEUE_ENABLE="1")


def test_processes_exchange_over_hccl() -> None:
    run("check_hccl.py", "a3", EMULATED_DEVICES="4")


def test_an_older_cann_leaves_the_call_to_plain_torch() -> None:
    run("check_older.py", "a3", EMULATED_CANN_WITHOUT="aclnnMoeGatingTopK,aclnnQuantMatmulV4,aclnnQuantMatmulV5")
