"""Planted bugs in the mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.conformance.mutants.planted import honest
from hal.dispatched import Dispatched
from hal.reference.experts import EPSILON, _scores

route = honest("hal.reference.experts:route")
ffn = honest("hal.reference.experts:ffn")
experts = honest("hal.reference.experts:experts")
combine = honest("hal.reference.experts:combine")


_LIMIT: list[float] = []
_clamped = honest(
    "hal.reference.experts:experts",
    F=SimpleNamespace(linear=F.linear, silu=lambda gate: F.silu(gate.clamp_min(-_LIMIT[-1]))),
)


def bias_in_weights(logits: Tensor, bias: Tensor | None, *rest: Any, scoring: str, scale: float, **words: Any) -> Any:
    weights, chosen = route(logits, bias, *rest, scoring=scoring, scale=scale, **words)
    if bias is not None:
        weights = (_scores(logits, scoring) + bias).gather(1, chosen.long())
        weights = weights / (weights.sum(-1, keepdim=True) + EPSILON) * scale
    return weights, chosen


def scale_twice(*arguments: Any, scale: float, **attributes: Any) -> Any:
    weights, chosen = route(*arguments, scale=scale, **attributes)
    return weights * scale, chosen


def scale_forgotten(*arguments: Any, scale: float, **attributes: Any) -> Any:
    return route(*arguments, scale=1.0, **attributes)


def unused_slot_computed(x: Tensor, expert_ids: Tensor, *rest: Any, **attributes: Any) -> Any:
    return ffn(x, expert_ids.clamp_min(0), *rest, **attributes)


def clamp_missing(*arguments: Any, clamp: float, activation: str) -> Any:
    return experts(*arguments, clamp=torch.inf, activation=activation)


def gate_clamped_below(*arguments: Any, clamp: float, activation: str) -> Any:
    _LIMIT.append(clamp)
    return _clamped(*arguments, clamp=clamp, activation=activation)


def weight_twice(dispatched: Dispatched, *rest: Any, **attributes: Any) -> Any:
    return experts(replace(dispatched, weights=dispatched.weights**2), *rest, **attributes)


def padding_summed(rows: Tensor, *rest: Any) -> Any:
    return combine(rows, *rest) + 0 * rows.sum()


def residual_overwritten(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Any:
    y = combine(rows, dispatched, residual)
    return y if residual is None else residual.copy_(y)


def summed_in_bfloat16(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Any:
    total = rows.new_zeros(dispatched.tokens, rows.shape[1]) if residual is None else residual.clone()
    for slot in dispatched.index.unbind(1):
        total += torch.where((slot < 0)[:, None], 0, rows[slot.clamp_min(0)]) if len(rows) else 0
    return total
