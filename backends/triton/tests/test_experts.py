"""Routing and the mixture of experts of the Triton kernels against the references."""

from dataclasses import replace

import pytest
import torch
from hal_emulators import triton as emulator
from hal_triton import experts
from triton_lab import close

from hal import formats
from hal.reference import experts as reference


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scoring", ["sqrtsoftplus", "sigmoid", "softmax"])
@pytest.mark.parametrize("biased", [False, True])
def test_route(scoring, biased):
    logits = randn(1, 7, 21) * 6
    logits[2] = -90.0
    logits[3, 4:9] = logits[3].max()
    bias = randn(2, 21) * 0.3 if biased else None
    attributes = {"top_k": 6, "scoring": scoring, "scale": 1.5}
    weights, ids = experts.route(logits, bias, None, None, **attributes)
    want, want_ids = reference.route(logits, bias, None, None, **attributes)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want, rtol=1e-5, atol=1e-7)


def test_route_by_table():
    logits, table = randn(1, 5, 12), torch.randint(0, 12, (30, 3), dtype=torch.int32)
    ids = torch.tensor([3, 29, 0, 3, 11])
    attributes = {"top_k": 3, "scoring": "sqrtsoftplus", "scale": 2.5}
    weights, chosen = experts.route(logits, None, ids, table, **attributes)
    want, want_ids = reference.route(logits, None, ids, table, **attributes)
    assert torch.equal(chosen, want_ids)
    torch.testing.assert_close(weights, want, rtol=1e-5, atol=1e-7)


def routed(tokens, top_k, count, seed=0):
    """Expert ids with unused slots, and weights."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(count, generator=g)[:top_k] for _ in range(tokens)]).int()
    ids[torch.rand(ids.shape, generator=g) < 0.2] = -1
    return ids, torch.rand(tokens, top_k, generator=g)


@pytest.mark.parametrize("activation", ["none", "e4m3_128", "e4m3_32", "e2m1_32", "int8_token"])
@pytest.mark.parametrize("tokens", [0, 1, 19])
def test_dispatch(activation, tokens):
    x = randn(1, tokens, 192).bfloat16()
    ids, weights = routed(tokens, 3, 5) if tokens else (torch.empty(0, 3, dtype=torch.int32), torch.empty(0, 3))
    got = experts.dispatch(x, ids, weights, None, experts=5, activation=activation)
    want = reference.dispatch(x, ids, weights, None, experts=5, activation=activation)
    assert torch.equal(got.counts, want.counts)
    assert torch.equal(got.index >= 0, ids >= 0)
    used = int(want.counts.sum())
    assert torch.equal(got.index[ids >= 0].sort().values, torch.arange(used))
    assert torch.equal(got.values()[got.index[ids >= 0]], want.values()[want.index[ids >= 0]])
    assert torch.equal(got.weights[got.index[ids >= 0]], weights[ids >= 0])


SCHEMES = [
    ("mxfp4", "e4m3_128"),
    ("mxfp4", "e4m3_32"),
    ("fp8_block128", "e4m3_128"),
    ("w8a8_int8", "int8_token"),
    ("bf16", "none"),
    ("mxfp8", "e4m3_32"),
]


@pytest.mark.parametrize(("scheme", "activation"), SCHEMES)
@pytest.mark.parametrize("chip", ["sm80", "sm100", "sm120"])
def test_experts(scheme, activation, chip):
    emulator.activate(chip)
    hidden, inner, count, tokens = 128, 160, 4, 9
    w13 = formats.prepare(randn(1, count, 2 * inner, hidden) * 0.3, scheme)
    w2 = formats.prepare(randn(2, count, hidden, inner) * 0.3, scheme)
    x = randn(3, tokens, hidden).bfloat16()
    ids, weights = routed(tokens, 2, count)
    ids[ids == 2] = -1
    dispatched = reference.dispatch(x, ids, weights, None, experts=count, activation=activation)
    rows = experts.experts(dispatched, w13, w2, clamp=2.0, activation=activation)
    want = reference.experts(dispatched, w13, w2, clamp=2.0, activation=activation)
    used = int(dispatched.counts.sum())
    close(rows[:used], want[:used], 2e-2)
    residual = randn(4, tokens, hidden).bfloat16()
    for extra in (None, residual):
        got = experts.combine(want, dispatched, extra)
        assert torch.equal(got, reference.combine(want, dispatched, extra))


def test_many_rows_and_padded_segments():
    """More rows than a tile per expert; segments that start where `starts` says, NaN between them."""
    hidden, inner, count, tokens = 128, 128, 2, 70
    w13 = formats.prepare(randn(1, count, 2 * inner, hidden) * 0.3, "mxfp4")
    w2 = formats.prepare(randn(2, count, hidden, inner) * 0.3, "mxfp4")
    x = randn(3, tokens, hidden).bfloat16()
    ids, weights = routed(tokens, 2, count)
    packed = reference.dispatch(x, ids, weights, None, experts=count, activation="none")
    want = reference.experts(packed, w13, w2, clamp=10.0, activation="e4m3_128")
    starts = torch.tensor([5, 120])
    rows = torch.full((260, hidden), float("nan"), dtype=torch.bfloat16)
    factors = torch.full((260,), float("nan"))
    at = torch.cat([torch.arange(n) + s for n, s in zip(packed.counts.tolist(), starts.tolist(), strict=True)])
    rows[at], factors[at] = packed.rows, packed.weights
    padded = replace(packed, rows=rows, weights=factors, starts=starts)
    got = experts.experts(padded, w13, w2, clamp=10.0, activation="e4m3_128")
    close(got[at], want, 2e-2)


def test_whole_layer():
    hidden, inner, count, tokens = 128, 128, 8, 5
    w13 = formats.prepare(randn(1, count, 2 * inner, hidden) * 0.3, "mxfp4")
    w2 = formats.prepare(randn(2, count, hidden, inner) * 0.3, "mxfp4")
    x, residual = randn(3, tokens, hidden).bfloat16(), randn(4, tokens, hidden).bfloat16()
    ids, weights = routed(tokens, 3, count)
    dispatched = experts.dispatch(x, ids, weights, None, experts=count, activation="e4m3_128")
    rows = experts.experts(dispatched, w13, w2, clamp=10.0, activation="e4m3_128")
    got = experts.combine(rows, dispatched, residual)
    want = reference.ffn(x, ids, weights, w13, w2, residual, None, experts=count, clamp=10.0, activation="e4m3_128")
    close(got, want, 2e-2)
