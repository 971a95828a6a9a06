"""Fused experts leave out the rounding before the second product and weight rows last: judged as they declare it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hal.conformance.samples.experts import CLAMP, ffn_sample
from hal.conformance.samples.sample import Sample
from hal.formats import simulate
from hal.numerics import Precision
from hal.numerics.contracts import expect

FUSED = Precision(hidden="float16", inner="float32")


@pytest.fixture(params=[("w8a8_int8", "int8_token"), ("bf16", "none")], ids=["int8", "bf16"])
def sample(request: pytest.FixtureRequest) -> Sample:
    return ffn_sample(33, *request.param, "spread")


def fused(sample: Sample, weights: Tensor, rounded: bool = False) -> Tensor:
    """Gate and up in float16, rows weighted when they are back, the residual after that. `rounded`: what enters the
    second product is rounded to the model's dtype first."""
    x, ids, _, w13, w2, residual, _ = sample.arguments()
    activation: Any = sample.attributes["activation"]
    slots = torch.zeros(*ids.shape, x.shape[1])
    for expert in range(w13.shape[0]):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        gate_up = simulate(x[token].float(), activation).double() @ w13[expert].dequantize(torch.float64).mT
        gate, up = gate_up.half().float().chunk(2, -1)
        inner = F.silu(gate.clamp(max=CLAMP)) * up.clamp(-CLAMP, CLAMP)
        inner = simulate(inner.to(x.dtype).float() if rounded else inner, activation)
        slots[token, slot] = (inner.double() @ w2[expert].dequantize(torch.float64).mT).to(x.dtype).float()
    return (slots * weights[:, :, None]).sum(1).to(x.dtype) + residual


def passes(y: Tensor, sample: Sample, precision: Precision | None = None) -> bool:
    return expect("moe.ffn", sample.arguments(), dict(sample.attributes), precision).judge(y, sample.arguments()).passed


def test_the_contract_refuses_it_and_a_kernel_may_declare_it(sample: Sample) -> None:
    y = fused(sample, sample.arguments()[2])
    assert not passes(y, sample)
    assert not passes(y, sample, Precision(hidden="float16"))
    assert passes(y, sample, FUSED)


def test_who_declares_it_is_refused_wrong_weights_and_other_roundings(sample: Sample) -> None:
    weights = sample.arguments()[2]
    for wrong in (weights * 1.02, weights.roll(1, 0), weights.where(torch.arange(weights.shape[1]) > 0, 0)):
        assert not passes(fused(sample, wrong), sample, FUSED)
    assert not passes(fused(sample, weights, rounded=True), sample, FUSED)
