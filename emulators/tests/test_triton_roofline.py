"""The counter and the count of what cannot be avoided check each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from hal_emulators.triton import roofline
from hal.bench import shapes
kept = {kept!r}
calls = [(name, sample) for name, sample in shapes.calls(roofline.INTERPRETED) if name in kept]
roofline.calls = lambda scale: calls
for one in roofline.measure():
    if one.kernel != "cuda.attend":
        print(one.kernel, one.call, one.moved / one.work.bytes, sep="|")
"""
STREAMED = {
    "cuda.attend_whole|csa decode",
    "cuda.store|window decode",
    "cuda.route|route decode",
    "cuda.dispatch|dispatch decode",
    "cuda.combine|combine decode",
    "cuda.quantize|fp8 decode",
    "cuda.matmul|fp8_block128 decode",
}


@pytest.fixture(scope="module")
def ratios() -> dict[str, float]:
    kept = sorted({name.split("|")[1] for name in STREAMED})
    words = [sys.executable, "-c", SCRIPT.format(kept=kept)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    return {line.rpartition("|")[0]: float(line.rpartition("|")[2]) for line in done.stdout.splitlines()}


@pytest.mark.parametrize("name", sorted(STREAMED))
def test_decoding_kernels_move_what_they_must_and_little_else(ratios: dict[str, float], name: str) -> None:
    assert 0.999 <= ratios[name] <= 1.10
