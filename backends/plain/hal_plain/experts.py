"""The mixture of experts in plain torch: rows sorted by expert, two products per expert that has any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.dispatched import Dispatched
from hal.distributed import Exchange
from hal.formats import quantize, simulate

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight

EPSILON = 1e-20  # keeps vanishing scores from dividing by zero


def route(
    logits: Tensor,
    bias: Tensor | None,
    token_ids: Tensor | None,
    table: Tensor | None,
    *,
    top_k: int,
    scoring: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`moe.route`: logits[tokens, experts] -> weights[tokens, top_k], expert_ids[tokens, top_k] int32, best first."""
    scores = _scores(logits.float(), scoring)
    if table is not None and token_ids is not None:
        chosen = table[token_ids].long()
    else:
        keys = scores if bias is None else scores + bias
        chosen = keys.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + EPSILON) * scale, chosen.int()


def _scores(logits: Tensor, scoring: str) -> Tensor:
    if scoring == "sqrtsoftplus":
        return torch.logaddexp(logits, logits.new_zeros(())).sqrt()
    return logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: x[tokens, hidden] -> rows sorted by expert, quantised, on the process that has the expert.

    Rows of unused slots stay, behind those of all experts, where nobody reads them.
    """
    tokens, top_k = expert_ids.shape
    ids = expert_ids.flatten().long()
    order = ids.where(ids >= 0, experts).argsort(stable=True)
    counts = torch.bincount(ids + 1, minlength=experts + 1)[1:]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    token = order // max(1, top_k)
    if activation == "none":
        rows, scales = x[token], None
    else:
        quantized = quantize(x, activation)
        rows, scales = quantized.codes[token], quantized.scales[token]
    index = place.where(ids >= 0, -1).view(tokens, top_k)
    return exchanged(rows, scales, activation, weights.flatten()[order], counts, index, x.dtype, group)


def exchanged(
    rows: Tensor,
    scales: Tensor | None,
    activation: str,
    factors: Tensor,
    counts: Tensor,
    index: Tensor,
    dtype: torch.dtype,
    group: Group | None,
) -> Dispatched:
    """Rows grouped by expert, sent over `group` to the processes that have the experts."""
    route = None
    if group is not None:
        used = int(counts.sum())
        route = Exchange.plan(group, counts)
        rows, factors = route.forward(rows[:used]), route.forward(factors[:used])
        scales = None if scales is None else route.forward(scales[:used])
        counts = route.counts
    return Dispatched(rows, scales, activation, factors, counts, index, *index.shape, dtype, route=route)


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: rows of every local expert through it, [rows, hidden] in the model's dtype; padding is zero."""
    values = dispatched.values()
    out = torch.zeros(len(values), w2.shape[-2], dtype=dispatched.dtype, device=values.device)
    for expert, (first, count) in enumerate(
        zip(dispatched.offsets().tolist(), dispatched.counts.tolist(), strict=True)
    ):
        if count:
            at = slice(first, first + count)
            gate_up = F.linear(values[at], w13[expert].dequantize())
            inner = activated(gate_up, dispatched.weights[at], clamp, dispatched.dtype)
            out[at] = F.linear(simulate(inner.float(), activation), w2[expert].dequantize()).to(out.dtype)
    return out


def activated(gate_up: Tensor, weights: Tensor, clamp: float, dtype: torch.dtype) -> Tensor:
    """silu(gate) * up * weight, clamped, in float32 and rounded once: gate_up[rows, 2 * inter] -> [rows, inter]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate.clamp(max=clamp)) * up.clamp(-clamp, clamp) * weights.unsqueeze(1)).to(dtype)


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: a token's rows summed in float32 in slot order, then `residual`, rounded once."""
    rows = returned(rows, dispatched)
    wide = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    total = torch.zeros(dispatched.tokens, rows.shape[1], dtype=torch.float32, device=rows.device)
    for slot in dispatched.index.unbind(1):
        total += wide[slot.where(slot >= 0, len(rows))]
    return (total if residual is None else total + residual).to(rows.dtype)


def returned(rows: Tensor, dispatched: Dispatched) -> Tensor:
    """Rows back on the processes they came from, as `dispatched.index` numbers them.

    Raises:
        TypeError: another backend's dispatch sent them out.
    """
    if dispatched.route is None:
        return rows
    if not isinstance(dispatched.route, Exchange):
        raise TypeError(f"rows went out by {type(dispatched.route).__name__}; only its own combine brings them back")
    return dispatched.route.backward(rows)
