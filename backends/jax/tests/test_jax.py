"""Parity with cpu on the small checkpoint, a few contracts, and the kernels of platforms that are not here."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("jax")

from hal_jax.kernels import kernels
from hal_jax.target import described, present
from typer.testing import CliRunner

from hal.cli.app import app
from hal.ops import CONTRACTS

CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-v4"


def test_parity_with_the_cpu_on_the_model() -> None:
    words = ["parity", "cpu", "jax", "--ops", "none", "--model", str(CHECKPOINT), "--tokens", "24", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


@pytest.mark.parametrize("contract", ["attn.compress_pool", "moe.experts", "quant.quantize"])
def test_some_contracts(contract: str) -> None:
    result = CliRunner().invoke(app, ["verify", "jax", "--quick", "--kernel", f"jax.{contract.split('.')[1]}"])
    assert result.exit_code == 0, result.output


def test_described_platforms_and_their_kernels() -> None:
    assert next(target.name for target in present()) == "jax"
    for target in described()[1:]:
        found = kernels(target)
        assert {kernel.contract for kernel in found} == set(CONTRACTS) - {"moe.ffn"}  # a composite of the others
        for kernel in found:
            module, name = kernel.code.split(":")
            assert callable(getattr(import_module(module), name))
