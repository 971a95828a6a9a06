"""The mixture of experts: rows grouped by expert, two products per expert that has any.

Within one process an expert's rows are gathered when its turn comes and its output is added to its tokens right away,
so that a layer needs no `tokens x top_k` copy of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.dispatched import Dispatched
from hal.distributed import Exchange
from hal.formats import Quantized, quantize, simulate
from hal_cpu.matmul import multiply
from hal_cpu.spans import working_dtype
from hal_cpu.topk import top_k as best

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight

SCORING: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrtsoftplus": lambda logits: torch.logaddexp(logits, logits.new_zeros(())).sqrt(),
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
}
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
    scores = SCORING[scoring](logits.to(working_dtype(logits)))
    if table is not None and token_ids is not None:
        chosen = table[token_ids].long()
    else:
        chosen = best(scores if bias is None else scores + bias.to(scores.dtype), top_k)
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + EPSILON) * scale, chosen.int()


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: x[tokens, hidden] -> rows sorted by expert, quantised, on the process that has the expert."""
    order, counts = _grouped(expert_ids, experts)
    index = torch.full((expert_ids.numel(),), -1, dtype=torch.int64)
    index[order] = torch.arange(len(order))
    token = order // max(1, expert_ids.shape[1])
    if activation == "none":
        rows, scales = x[token], None
    else:
        quantized = quantize(x, activation)[token]
        rows, scales = quantized.codes, quantized.scales
    factors, exchange = weights.flatten()[order], None
    if group is not None:
        exchange = Exchange.plan(group, counts)
        rows, factors = exchange.forward(rows), exchange.forward(factors)
        scales = None if scales is None else exchange.forward(scales)
        counts = exchange.counts
    tokens, top_k = expert_ids.shape
    back = index.view(tokens, top_k)
    return Dispatched(rows, scales, activation, factors, counts, back, tokens, top_k, x.dtype, route=exchange)


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: rows of every local expert through it, [rows, hidden] in the model's dtype; padding is zero."""
    out = torch.zeros(len(dispatched.rows), w2.shape[-2], dtype=dispatched.dtype)
    offsets, counts = dispatched.offsets().tolist(), dispatched.counts.tolist()
    for expert, (first, count) in enumerate(zip(offsets, counts, strict=True)):
        if count:
            at = slice(first, first + count)
            rows = _dequantized(dispatched, at)
            factor = dispatched.weights[at].to(rows.dtype)
            out[at] = _expert(rows, factor, w13, w2, expert, dispatched.dtype, clamp, activation)
    return out


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: a token's rows summed in float32 in slot order, then `residual`, rounded once."""
    if dispatched.route is not None:
        if not isinstance(dispatched.route, Exchange):
            raise TypeError(
                f"rows went out by {type(dispatched.route).__name__}; only its own combine brings them back"
            )
        rows = dispatched.route.backward(rows)
    total = torch.zeros(dispatched.tokens, rows.shape[1], dtype=working_dtype(rows))
    for slot in dispatched.index.unbind(1):
        token = (slot >= 0).nonzero().squeeze(1)
        total.index_add_(0, token, rows[slot[token]].to(total.dtype))
    return (total if residual is None else total.add_(residual)).to(rows.dtype)


def ffn(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w13: PackedWeight,
    w2: PackedWeight,
    residual: Tensor | None,
    group: Group | None,
    *,
    experts: int,
    clamp: float,
    activation: str,
) -> Tensor:
    """`moe.ffn`: x[tokens, hidden] -> y[tokens, hidden]. A token's experts are summed in ascending order."""
    if group is not None:
        sent = dispatch(x, expert_ids, weights, group, experts=experts, activation=activation)
        return combine(_all_experts(sent, w13, w2, clamp=clamp, activation=activation), sent, residual)
    work = working_dtype(x)
    rounded = x.to(work) if activation == "none" else quantize(x, activation).dequantize().to(work)
    order, counts = _grouped(expert_ids, experts)
    token, factors = order // max(1, expert_ids.shape[1]), weights.flatten()[order].to(work)
    y = torch.zeros_like(rounded)
    first = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            at = slice(first, first + count)
            out = _expert(rounded[token[at]], factors[at], w13, w2, expert, x.dtype, clamp, activation)
            y.index_add_(0, token[at], out.to(work))
            first += count
    return (y if residual is None else y.add_(residual)).to(x.dtype)


_all_experts = experts  # `ffn` has an attribute of this name


def _grouped(expert_ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Used slots (token * top_k + slot) sorted by expert, int64, and how many each expert has."""
    ids = expert_ids.flatten().long()
    counts = torch.bincount(ids + 1, minlength=experts + 1)  # -1 is an unused slot: it sorts first
    return ids.argsort(stable=True)[int(counts[0]) :], counts[1:]


def _dequantized(dispatched: Dispatched, at: slice) -> Tensor:
    if dispatched.scales is None:
        return dispatched.rows[at].to(working_dtype(dispatched.rows))
    return Quantized(dispatched.rows[at], dispatched.scales[at], dispatched.activation).dequantize().float()


def _expert(
    x: Tensor,
    factor: Tensor,
    w13: PackedWeight,
    w2: PackedWeight,
    expert: int,
    dtype: torch.dtype,
    clamp: float,
    activation: str,
) -> Tensor:
    """Clamped SwiGLU of one expert's rows, the routing weight before the second product, rounded to `dtype`."""
    gate, up = multiply(x, w13, expert).chunk(2, dim=-1)
    inner = F.silu(gate.clamp(max=clamp)).mul_(up.clamp(-clamp, clamp)).mul_(factor.unsqueeze(1))
    rounded = simulate(inner.to(dtype).to(x.dtype), activation)
    return multiply(rounded, w2, expert).to(dtype)
