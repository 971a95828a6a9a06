"""On a real GPU: the whole suite, and a measurement; nothing here is emulated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="incomplete: no NVIDIA GPU is here"),
]


def hal(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "hal", *words], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_case_passes_and_leaves_evidence(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence.json"
    hal("verify", "cuda", "--evidence", str(evidence))
    assert {record["how"] for record in json.loads(evidence.read_text())["records"]} == {"chip"}


def test_no_kernel_beats_the_machine() -> None:
    """A share above what the machine can do would mean that the work is counted wrong."""
    data = json.loads(hal("bench", "kernels", "--backend", "cuda", "--context", "8192", "--json"))
    assert data["kernels"]
    assert all(0 < one["share"] < 1.2 for one in data["kernels"])
