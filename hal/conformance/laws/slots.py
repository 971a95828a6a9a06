"""Laws of routing slots: an unused slot is no slot, and the order of tokens is only an order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hal import ops
from hal.conformance.laws.law import Law
from hal.conformance.samples import Sample
from hal.conformance.trial import Outcome, Subject, judge
from hal.kernel import Kernel

__all__ = ["REVERSED_TOKENS", "UNUSED_SLOTS"]


def _unused(subject: Subject, sample: Sample) -> None:
    """Two more slots per token, unused, the weights in them NaN."""
    x, ids, weights, *rest = sample.arguments(subject.target.device_type)
    ids = torch.cat([ids, ids.new_full((len(ids), 2), -1)], 1)
    weights = torch.cat([weights, weights.new_full((len(weights), 2), torch.nan)], 1)
    call = sample.call
    call = replace(call, sizes={**call.sizes, "top_k": ids.shape[1]})
    wanted = subject.expectation(sample, (x, ids, weights, *rest))
    judge(wanted, subject.run(call, (x, ids, weights, *rest)), "law")


def _reversed(subject: Subject, sample: Sample) -> None:
    """All tokens in reverse, results turned around again."""
    wanted = subject.expectation(sample)
    signature = ops.get(sample.contract).parsed
    arguments = [
        value.flip(0).contiguous() if value is not None and argument.dims and argument.dims[0] == "tokens" else value
        for argument, value in zip(signature.arguments, sample.arguments(subject.target.device_type), strict=True)
    ]
    outcome = subject.run(sample.call, arguments)
    outputs: Any = outcome.outputs
    turned = tuple(x.flip(0) for x in outputs) if isinstance(outputs, tuple | list) else outputs.flip(0)
    judge(wanted, Outcome(turned, outcome.arguments), "law")


def _some(kernel: Kernel, sample: Sample) -> bool:
    limited = any(c.name == "top_k" for c in kernel.constraints)
    return bool(sample.dynamic.get("tokens")) and not limited


def _tokens(kernel: Kernel, sample: Sample) -> bool:
    return sample.dynamic.get("tokens", 0) > 1


UNUSED_SLOTS = Law("unused slots", "Slots of -1 behind the used ones change nothing.", _unused, _some)
REVERSED_TOKENS = Law("reversed tokens", "Tokens in reverse give results in reverse.", _reversed, _tokens)
