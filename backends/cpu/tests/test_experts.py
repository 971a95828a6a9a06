"""Routing, experts and dequantised weights."""

from __future__ import annotations

import gc

import pytest
import torch
from hal_cpu import experts, matmul
from hal_cpu.weights import DequantisedWeights
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.formats import ACTIVATIONS, SCHEMES, prepare
from hal.reference import experts as reference
from hal.reference import matmul as reference_matmul


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_ffn(tokens: int, count: int, top_k: int, seed: int) -> None:
    """Unused slots, idle experts and one-row experts; the coarse kernel and its parts against the reference."""
    generator = torch.Generator().manual_seed(seed)
    top_k = min(top_k, count)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ids = torch.rand(tokens, count, generator=generator).topk(top_k).indices.int()
    ids[torch.rand(tokens, top_k, generator=generator) < 0.2] = -1
    x, weights, residual = random(tokens, 8), torch.rand(tokens, top_k, generator=generator), random(tokens, 8)
    w13, w2 = prepare(random(count, 12, 8), "float64"), prepare(random(count, 8, 6), "float64")
    names = {"clamp": 1.5, "activation": "none"}
    want = reference.ffn(x, ids, weights, w13, w2, residual, None, experts=count, **names)
    got = experts.ffn(x, ids, weights, w13, w2, residual, None, experts=count, **names)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    sent = experts.dispatch(x, ids, weights, None, experts=count, activation="none")
    parts = experts.combine(experts.experts(sent, w13, w2, **names), sent, residual)
    torch.testing.assert_close(parts, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matmul(scheme: str, activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 256, generator=generator)
    weight = prepare(torch.randn(300, 256, generator=generator), scheme)
    got = matmul.matmul(x, weight, activation=activation)
    want = reference_matmul.matmul(x, weight, activation=activation)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_weights_are_kept_within_the_limit_and_go_with_their_codes() -> None:
    kept = DequantisedWeights(limit=3 * 256 * 128 * 4)
    weights = [prepare(torch.randn(256, 128), "mxfp4") for _ in range(4)]
    for weight in weights:
        whole = torch.cat(list(kept.matrices(weight, torch.float32)))
        assert torch.equal(whole, weight.dequantize(torch.float32))
    assert kept.bytes == kept.limit
    again = [next(kept.matrices(weight, torch.float32)).data_ptr() for weight in weights[:3]]
    assert again == [next(kept.matrices(weight, torch.float32)).data_ptr() for weight in weights[:3]]
    del weights, weight
    gc.collect()
    assert kept.bytes == 0


def test_weights_beyond_the_limit_come_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal_cpu.weights.BLOCK_FLOATS", 128)
    weight = prepare(torch.randn(3, 300, 128), "fp8_block128")
    parts = list(DequantisedWeights(limit=0).matrices(weight, torch.float32, expert=1))
    assert [len(part) for part in parts] == [128, 128, 44]
    assert torch.equal(torch.cat(parts), weight[1].dequantize(torch.float32))


def test_weights_written_in_place_are_dequantised_again() -> None:
    kept = DequantisedWeights(limit=1 << 20)
    weight = prepare(torch.randn(8, 8), "bf16")
    first = next(kept.matrices(weight, torch.float32))
    weight.codes.zero_()
    assert torch.equal(next(kept.matrices(weight, torch.float32)), torch.zeros(8, 8))
    assert not torch.equal(first, torch.zeros(8, 8))
    kept.clear()
    assert kept.bytes == 0
