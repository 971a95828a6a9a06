"""The second implementation: the same model, the same tokens; and what crosses between torch and XLA without a copy."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("jax")

from hal_jax import attention, exchange
from hal_jax.kernels import kernels
from hal_jax.target import described, present
from typer.testing import CliRunner

from hal.batch import Batch
from hal.cache import KVCache
from hal.cli.app import app
from hal.layouts import layout

CHECKPOINT = Path(__file__).parents[3] / "examples" / "tiny-v4"


def test_greedy_tokens_are_those_of_the_cpu() -> None:
    def text(backend: str) -> str:
        words = ["generate", str(CHECKPOINT), "--prompt", "The for", "--max-new-tokens", "12", "--backend", backend]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert text("jax") == text("cpu")


def test_parity_with_the_cpu_on_the_model() -> None:
    words = ["parity", "cpu", "jax", "--ops", "none", "--model", str(CHECKPOINT), "--tokens", "24", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


@pytest.mark.parametrize("contract", ["attn.compress_pool", "moe.experts", "quant.quantize"])
def test_some_contracts(contract: str) -> None:
    result = CliRunner().invoke(app, ["verify", "jax", "--quick", "--kernel", f"jax.{contract.split('.')[1]}"])
    assert result.exit_code == 0, result.output


def test_aligned_tensors_are_shared_and_others_are_counted() -> None:
    exchange.COPIES.clear()
    x = torch.arange(64, dtype=torch.float32)
    array = exchange.array(x)
    x[3] = 100.0
    assert float(array[3]) == 100.0
    assert not exchange.COPIES
    exchange.array(x[1:17])
    exchange.array(torch.zeros(4, 8).T)
    exchange.array(torch.zeros(3, 16), 4)
    exchange.array(torch.zeros(2, dtype=torch.int64))
    assert exchange.COPIES == {"alignment": 64, "strides": 128, "bucket": 192, "int64": 8}
    exchange.COPIES.clear()


def test_a_growing_context_does_not_compile_at_every_token() -> None:
    cache = KVCache.allocate(layout("rows_f32", 64, 16), 1, 1024)
    entries = KVCache.allocate(layout("rows_f32", 64, 16), 1, 256)
    before = attention._attend._cache_size()
    for start in range(300, 500, 10):
        batch = Batch.build([1], [start], [0])
        q = torch.randn(1, 2, 64, dtype=torch.float32)
        out, _ = attention.attend(q, cache, entries, None, None, batch, scale=0.1, window_size=8, ratio=4)
        assert out.shape == q.shape
    assert attention._attend._cache_size() - before <= 2


def test_described_platforms_and_their_kernels() -> None:
    assert next(target.name for target in present()) == "jax"
    for target in described()[1:]:
        found = kernels(target)
        assert len(found) == 12
        for kernel in found:
            module, name = kernel.code.split(":")
            assert callable(getattr(import_module(module), name))
