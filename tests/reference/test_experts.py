"""The experts' references against loops over single rows and against transformers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

from hal.errors import ContractError
from hal.formats import PackedWeight, prepare, quantize, simulate
from hal.reference.experts import combine, dispatch, experts, ffn, route

from . import lab

HIDDEN, INTER, EXPERTS = 32, 16, 5
SCORINGS = pytest.mark.parametrize("scoring", ["sqrtsoftplus", "sigmoid", "softmax"])


def score_by_hand(logits: list[float], scoring: str) -> list[float]:
    if scoring == "sqrtsoftplus":
        return [math.sqrt(math.log1p(math.exp(z))) for z in logits]
    if scoring == "sigmoid":
        return [1 / (1 + math.exp(-z)) for z in logits]
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


@SCORINGS
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), tokens=st.integers(0, 5), top_k=st.integers(1, 5), coarse=st.booleans())
def test_routes_equal_loops(scoring: str, seed: int, tokens: int, top_k: int, coarse: bool) -> None:
    draw = lab.draw(seed)
    logits, bias = draw.normal(tokens, EXPERTS), draw.normal(EXPERTS)
    if coarse:  # many ties
        logits, bias = logits.round(), torch.zeros(EXPERTS).double()
    weights, ids = route(logits, bias, None, None, top_k=top_k, scoring=scoring, scale=2.5)
    assert weights.shape == ids.shape == (tokens, top_k)
    assert ids.dtype == torch.int32
    for token in range(tokens):
        scores = score_by_hand(logits[token].tolist(), scoring)
        best = sorted(range(EXPERTS), key=lambda e: (-round(scores[e] + float(bias[e]), 12), e))[:top_k]
        assert ids[token].tolist() == best
        want = [2.5 * scores[e] / sum(scores[e] for e in best) for e in best]
        torch.testing.assert_close(weights[token], torch.tensor(want).double())


@SCORINGS
def test_pitfall_13_bias_chooses_and_never_weighs(scoring: str) -> None:
    logits = lab.draw(0).normal(3, EXPERTS)
    bias = torch.tensor([0.0, 100.0, 0.0, 50.0, 0.0])
    weights, ids = route(logits, bias, None, None, top_k=2, scoring=scoring, scale=1.5)
    assert ids.tolist() == [[1, 3]] * 3
    table = torch.tensor([[1, 3]], dtype=torch.int32)
    hashed, same = route(logits, None, torch.zeros(3).long(), table, top_k=2, scoring=scoring, scale=1.5)
    torch.testing.assert_close(weights, hashed)
    assert torch.equal(ids, same)


def test_pitfall_13_table_ignores_bias_and_scores() -> None:
    logits, table = lab.draw(1).normal(4, EXPERTS), torch.tensor([[4, 0], [2, 1], [0, 3]], dtype=torch.int32)
    ids = torch.tensor([2, 0, 1, 2])
    for bias in (None, torch.full((EXPERTS,), 9.0)):
        weights, chosen = route(logits, bias, ids, table, top_k=2, scoring="sqrtsoftplus", scale=1.0)
        assert torch.equal(chosen, table[ids])
        torch.testing.assert_close(weights.sum(-1), torch.ones(4).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@SCORINGS
def test_vanishing_and_huge_scores_stay_finite(scoring: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1000.0] * EXPERTS, [1000.0, -1000, 0, 900, 30], [20.5] * EXPERTS], dtype=dtype)
    weights, _ = route(logits, None, None, None, top_k=2, scoring=scoring, scale=1.5)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights[1:].sum(-1), torch.full((2,), 1.5, dtype=dtype))
    if scoring != "softmax":
        assert not weights[0].any()


def test_unknown_scoring_is_named() -> None:
    with pytest.raises(ContractError, match="'tanh'"):
        route(torch.zeros(1, 3), None, None, None, top_k=1, scoring="tanh", scale=1.0)


def _config(**changes: object) -> transformers.DeepseekV4Config:
    return transformers.DeepseekV4Config(
        hidden_size=HIDDEN, moe_intermediate_size=INTER, n_routed_experts=EXPERTS, num_experts_per_tok=2,
        num_hidden_layers=1, vocab_size=11, routed_scaling_factor=1.5, swiglu_limit=0.7, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("scoring", ["sqrtsoftplus", "sigmoid"])
def test_routes_equal_transformers(scoring: str) -> None:
    torch.manual_seed(0)
    config, x, ids = _config(scoring_func=scoring), torch.randn(20, HIDDEN), torch.randint(11, (20,))
    gate, hashed = theirs.DeepseekV4TopKRouter(config), theirs.DeepseekV4HashRouter(config)
    for module in (gate, hashed):
        torch.nn.init.normal_(module.weight)
    gate.e_score_correction_bias.normal_()
    hashed.tid2eid.copy_(torch.rand(11, EXPERTS).topk(2).indices)
    attributes = {"top_k": 2, "scoring": scoring, "scale": 1.5}
    _, weights, chosen = gate(x)
    mine = route(x @ gate.weight.T, gate.e_score_correction_bias, None, None, **attributes)
    torch.testing.assert_close(mine[0], weights)
    assert torch.equal(mine[1].long(), chosen)
    _, weights, chosen = hashed(x, ids)
    mine = route(x @ hashed.weight.T, None, ids, hashed.tid2eid.int(), **attributes)
    torch.testing.assert_close(mine[0], weights)
    assert torch.equal(mine[1].long(), chosen)


def _weights(seed: int = 0, scheme: str = "float64", hidden: int = HIDDEN) -> tuple[PackedWeight, PackedWeight]:
    draw = lab.draw(seed)
    w13, w2 = draw.normal(EXPERTS, 2 * INTER, hidden) / 4, draw.normal(EXPERTS, hidden, INTER) / 4
    return prepare(w13, scheme), prepare(w2, scheme)


def _routed(seed: int, tokens: int, top_k: int, unused: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, distinct experts per token (some slots unused), weights."""
    draw = lab.draw(seed)
    ids = draw.normal(tokens, EXPERTS).argsort(-1)[:, :top_k]
    if unused:
        ids = torch.where(draw.integers(4, tokens, top_k) == 0, -1, ids)
    return draw.normal(tokens, HIDDEN), ids.int(), draw.normal(tokens, top_k).abs()


def row_by_hand(x: Tensor, weight: float, w13: Tensor, w2: Tensor, clamp: float) -> Tensor:
    hidden = [sum(float(a) * float(b) for a, b in zip(x, row, strict=True)) for row in w13]
    inner = []
    for gate, up in zip(hidden[:INTER], hidden[INTER:], strict=True):
        gate, up = min(gate, clamp), max(-clamp, min(up, clamp))
        inner.append(gate / (1 + math.exp(-gate)) * up * weight)
    return torch.tensor([sum(a * float(b) for a, b in zip(inner, row, strict=True)) for row in w2]).double()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), tokens=st.integers(0, 4), top_k=st.integers(1, 3), residual=st.booleans())
def test_layer_equals_loops(seed: int, tokens: int, top_k: int, residual: bool) -> None:
    x, ids, weights = _routed(seed, tokens, top_k)
    w13, w2 = _weights(seed)
    shared = lab.draw(seed).normal(tokens, HIDDEN) if residual else None
    y = ffn(x, ids, weights, w13, w2, shared, None, experts=EXPERTS, clamp=0.8, activation="none")
    for token in range(tokens):
        want = torch.zeros(HIDDEN).double() if shared is None else shared[token].clone()
        for slot, expert in enumerate(ids[token].tolist()):
            if expert >= 0:
                want += row_by_hand(x[token], float(weights[token, slot]), w13.codes[expert], w2.codes[expert], 0.8)
        torch.testing.assert_close(y[token], want)


def test_layer_equals_transformers() -> None:
    torch.manual_seed(0)
    config = _config()
    module = theirs.DeepseekV4Experts(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, ids, weights = torch.randn(40, HIDDEN), torch.rand(40, EXPERTS).topk(2).indices, torch.rand(40, 2)
    packed = [prepare(w, "float32") for w in (module.gate_up_proj, module.down_proj)]
    y = ffn(x, ids.int(), weights, *packed, None, None, experts=EXPERTS, clamp=config.swiglu_limit, activation="none")
    torch.testing.assert_close(y, module(x, ids, weights), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99), tokens=st.integers(0, 6), top_k=st.integers(1, 3),
    activation=st.sampled_from(("none", "e4m3_32", "e2m1_32", "int8_token")),
)  # fmt: skip
def test_every_used_slot_finds_its_row(seed: int, tokens: int, top_k: int, activation: str) -> None:
    x, ids, weights = _routed(seed, tokens, top_k)
    sent = dispatch(x.float(), ids, weights.float(), None, experts=EXPERTS, activation=activation)
    values, offsets = sent.values(), sent.offsets().tolist()
    assert sent.counts.tolist() == [int((ids == e).sum()) for e in range(EXPERTS)]
    assert (sent.tokens, sent.top_k, sent.dtype) == (tokens, top_k, torch.float32)
    used = 0
    for token in range(tokens):
        for slot, expert in enumerate(ids[token].tolist()):
            row = int(sent.index[token, slot])
            assert (row < 0) == (expert < 0)
            if expert >= 0:
                used += 1
                assert offsets[expert] <= row < offsets[expert] + int(sent.counts[expert])
                assert torch.equal(values[row], simulate(x[token].float(), activation))
                assert float(sent.weights[row]) == float(weights[token, slot].float())
    assert len(sent.rows) == used


def test_pitfall_14_gate_is_clamped_from_above_only() -> None:
    ones = torch.zeros(1, 2, 2).double()
    ones[0, 0, 0] = ones[0, 1, 1] = 1  # gate is channel 0, up is channel 1
    w13, w2 = prepare(ones, "float64"), prepare(torch.ones(1, 2, 1).double(), "float64")
    x = torch.tensor([[-9.0, 1], [9, 1], [1, -9], [1, 9], [-9, -9]]).double()
    y = ffn(x, torch.zeros(5, 1).int(), torch.ones(5, 1), w13, w2, None, None, experts=1, clamp=2.0, activation="none")[
        :, 0
    ]
    silu = torch.nn.functional.silu
    gates, ups = torch.tensor([-9.0, 2, 1, 1, -9]).double(), torch.tensor([1.0, 1, -2, 2, -2]).double()
    torch.testing.assert_close(y, silu(gates) * ups)


def test_weight_multiplies_before_the_second_quantiser() -> None:
    x, ids, weights = _routed(3, 6, 2, unused=False)
    low = x.bfloat16()
    w13, w2 = _weights(3, "bf16")
    y = ffn(low, ids, weights.float(), w13, w2, None, None, experts=EXPERTS, clamp=5.0, activation="e4m3_32")
    want = torch.zeros(6, HIDDEN)
    for token in range(6):
        for slot, expert in enumerate(ids[token].tolist()):
            hidden = simulate(low[token], "e4m3_32").float() @ w13.codes[expert].float().T
            gate, up = hidden[:INTER].clamp(max=5.0), hidden[INTER:].clamp(-5.0, 5.0)
            inner = (torch.nn.functional.silu(gate) * up * weights[token, slot].float()).bfloat16()
            rounded = simulate(inner[None], "e4m3_32")[0].float()
            want[token] += (rounded @ w2.codes[expert].float().T).bfloat16().float()
    torch.testing.assert_close(y, want.bfloat16(), rtol=2e-2, atol=1e-2)
    assert y.dtype == torch.bfloat16


def test_padding_between_experts_is_inert() -> None:
    x, ids, weights = _routed(4, 7, 3)
    w13, w2 = _weights(4)
    packed = dispatch(x, ids, weights, None, experts=EXPERTS, activation="none")
    starts = torch.arange(EXPERTS) * 10 + 2
    rows, factors = torch.full((60, HIDDEN), torch.nan).double(), torch.full((60,), torch.nan).double()
    moved = torch.cat([start + torch.arange(count) for start, count in zip(starts, packed.counts, strict=True)])
    rows[moved], factors[moved] = packed.rows, packed.weights
    index = torch.where(packed.index < 0, -1, moved[packed.index])
    padded = replace(packed, rows=rows, weights=factors, index=index, starts=starts)
    done = experts(padded, w13, w2, clamp=1.0, activation="none")
    plain = experts(packed, w13, w2, clamp=1.0, activation="none")
    assert torch.equal(done[moved], plain)
    done[[0, 1, 59]] = torch.nan
    assert torch.equal(combine(done, padded, None), combine(plain, packed, None))


def test_sum_is_in_slot_order_and_rounds_once() -> None:
    ids = torch.tensor([[3, 0, 2, 1]], dtype=torch.int32)
    sent = dispatch(torch.zeros(1, 8).bfloat16(), ids, torch.ones(1, 4), None, experts=4, activation="none")
    by_slot = torch.tensor([1e8, 1.0, -1e8, 3.0]).bfloat16()
    rows = by_slot[[1, 3, 2, 0]][:, None].expand(4, 8)  # sorted by expert
    want = torch.tensor(0.0)
    for value in by_slot.float():
        want = want + value
    assert torch.equal(combine(rows, sent, None), want.bfloat16().expand(1, 8))
    small = torch.full((4, 8), 0.001).bfloat16()
    residual = torch.ones(1, 8).bfloat16()
    once = (small[:1].float() * 4 + 1).bfloat16()
    assert torch.equal(combine(small, sent, residual), once)
    assert not torch.equal(once, residual)  # rounding after every slot would lose them all


def test_tokens_without_slots_keep_their_residual() -> None:
    x, (w13, w2) = torch.ones(3, HIDDEN).double(), _weights()
    ids, weights = torch.full((3, 2), -1).int(), torch.full((3, 2), torch.nan).double()
    attributes = {"experts": EXPERTS, "clamp": 1.0, "activation": "none"}
    assert torch.equal(ffn(x, ids, weights, w13, w2, x, None, **attributes), x)
    assert not ffn(x, ids, weights, w13, w2, None, None, **attributes).any()


@pytest.mark.parametrize("activation", ["none", "e4m3_32", "int8_token"])
def test_no_tokens(activation: str) -> None:
    ids = torch.empty(0, 2, dtype=torch.int32)
    y = ffn(
        torch.empty(0, HIDDEN).bfloat16(), ids, torch.empty(0, 2), *_weights(), None, None, experts=EXPERTS, clamp=1.0,
        activation=activation,
    )  # fmt: skip
    assert y.shape == (0, HIDDEN)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", ["fp8_block128", "mxfp4", "w8a8_int8"])
def test_packed_weights_mean_their_values(scheme: str) -> None:
    x, ids, weights = _routed(5, 6, 2)
    packed = _weights(5, scheme)
    plain = [prepare(w.dequantize(), "float32") for w in packed]
    attributes = {"experts": EXPERTS, "clamp": 1.0, "activation": "e4m3_32"}
    one, other = (ffn(x.float(), ids, weights.float(), *w, None, None, **attributes) for w in (packed, plain))
    assert torch.equal(one, other)


def test_quantised_rows_travel_as_codes() -> None:
    x, ids, weights = _routed(6, 4, 2, unused=False)
    sent = dispatch(x.bfloat16(), ids, weights.float(), None, experts=EXPERTS, activation="e4m3_32")
    codes = quantize(x.bfloat16(), "e4m3_32")
    token = torch.empty(8, dtype=torch.int64)
    token[sent.index.flatten()] = torch.arange(4).repeat_interleave(2)
    assert sent.rows.dtype == torch.float8_e4m3fn
    assert torch.equal(sent.rows.float(), codes[token].codes.float())
    assert torch.equal(sent.scales.float(), codes[token].scales.float())


def test_combine_refuses_a_foreign_way_back() -> None:
    x, ids, weights = _routed(1, 2, 1)
    sent = dispatch(x, ids, weights, None, experts=EXPERTS, activation="none")
    with pytest.raises(ContractError, match="way back of type SimpleNamespace"):
        combine(sent.rows, replace(sent, route=SimpleNamespace()), None)


def test_gradients() -> None:
    x, ids, weights = _routed(7, 3, 2)
    w13, w2 = (w.codes[:, ..., :6] if i == 0 else w.codes[:, :6] for i, w in enumerate(_weights(7)))

    def run(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        packed = [PackedWeight(w, None, "float64", tuple(w.shape)) for w in (w13, w2)]
        return ffn(x, ids, weights, *packed, x, None, experts=EXPERTS, clamp=3.0, activation="none")

    inputs = [each.detach().clone().requires_grad_() for each in (x[:, :6], weights, w13, w2)]
    assert torch.autograd.gradcheck(run, inputs)


@SCORINGS
def test_gradients_of_routes(scoring: str) -> None:
    logits = lab.draw(8).normal(3, EXPERTS).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: route(z, torch.arange(EXPERTS).double(), None, None, top_k=2, scoring=scoring, scale=1.5)[0],
        (logits,),
    )


def test_gradients_pass_straight_through_quantisers() -> None:
    x, ids, weights = _routed(9, 4, 2, unused=False)
    w13, w2 = _weights(9, "float32")
    found = []
    for activation in ("e4m3_32", "none"):
        leaf = simulate(x.float(), activation).requires_grad_()
        attributes = {"experts": EXPERTS, "clamp": 9.0, "activation": activation}
        ffn(leaf, ids, weights.float(), w13, w2, None, None, **attributes).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=0.3, atol=0.3)
    assert found[0].abs().min() > 0


def test_parts_may_be_replaced() -> None:
    x, ids, weights = _routed(2, 4, 2)
    w13, w2 = _weights(2)
    seen: list[str] = []
    attributes = {"experts": EXPERTS, "clamp": 1.0, "activation": "none"}

    def logged(name: str, part: object) -> object:
        return lambda *args: seen.append(name) or part(*args)

    parts = SimpleNamespace(
        dispatch=logged("dispatch", lambda *a: dispatch(*a, experts=EXPERTS, activation="none")),
        experts=logged("experts", lambda *a: experts(*a, clamp=1.0, activation="none")),
        combine=logged("combine", combine),
    )
    given = ffn(x, ids, weights, w13, w2, x, None, parts=parts, **attributes)
    assert seen == ["dispatch", "experts", "combine"]
    assert torch.equal(given, ffn(x, ids, weights, w13, w2, x, None, **attributes))
