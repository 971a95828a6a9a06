"""The small checkpoint on jax and on cpu: the same greedy tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

ROOT = Path(__file__).resolve().parents[3]


def generated(backend: str) -> str:
    """Text that `hal generate` prints."""
    words = ["generate", "examples/tiny-v4", "--prompt", "The for", "--max-new-tokens", "24", "--backend", backend]
    done = subprocess.run(
        [sys.executable, "-m", "hal", *words, "--json"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return str(json.loads(done.stdout)["text"])


def test_greedy_tokens_agree() -> None:
    text = generated("jax")
    assert text == generated("cpu")
    assert len(text) > 24


def test_plugin_imports_neither_torch_nor_jax() -> None:
    script = "import sys, hal_jax.plugin; sys.exit(bool({'torch', 'jax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_auto_means_an_accelerator_never_this_processor() -> None:
    script = "import hal; from hal.selection import target_of; print(target_of(hal.Policy.current()).backend)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"HAL_BACKEND": "auto"},
    )
    assert done.stdout.strip() != "jax"
