"""Why `dispatch_ffn_combine` and the weights of the exchange are not used: on the way back they are a rounding late."""

from dataclasses import replace

import pytest
import torch

from hal.conformance.samples.experts import ffn_sample
from hal.numerics.contracts import expect
from hal.reference import experts as reference


@pytest.mark.parametrize(("scheme", "activation"), [("w8a8_int8", "int8_token"), ("bf16", "none")])
@pytest.mark.parametrize("late", [False, True])
def test_weights_on_the_way_back_are_refused(scheme: str, activation: str, late: bool) -> None:
    sample = ffn_sample(33, scheme, activation, "spread")
    x, ids, weights, w13, w2, residual, _ = sample.arguments()
    words = dict(sample.attributes)
    sent = reference.dispatch(x, ids, weights, None, experts=words["experts"], activation=activation)
    factors = weights if late else torch.ones_like(weights)
    through = replace(sent, weights=torch.ones_like(sent.weights)) if late else sent
    rows = reference.experts(through, w13, w2, clamp=words["clamp"], activation=activation).float()
    y = ((rows[sent.index] * factors.unsqueeze(2)).sum(1) + residual.float()).to(x.dtype)
    verdict = expect("moe.ffn", sample.arguments(), words).judge(y, sample.arguments())
    assert verdict.passed != late, str(verdict)
