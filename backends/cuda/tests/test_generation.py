"""The small checkpoint through this backend's Triton kernels, interpreted, and on cpu: the same greedy tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]


def hal(*words: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "hal", *words, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_greedy_tokens_agree() -> None:
    """Few of them: a step takes the interpreter seconds."""
    words = ("generate", "examples/tiny-v4", "--prompt", "for i in", "--max-new-tokens", "5", "--backend")
    mine, other = (hal(*words, name) for name in ("cuda:sm90@emulated", "cpu"))
    assert mine["backend"] == "cuda:sm90"
    assert mine["text"] == other["text"]
    assert len(mine["text"]) > 5
