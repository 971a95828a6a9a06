"""References of the mixture of experts: route, dispatch, two products per expert, combine.

Formulas: DeepSeek-V4 technical report; the official inference code's `Gate` and `Expert`. The sum over a token's slots
is taken in slot order, as DeepGEMM's MegaMoE does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.dispatched import Dispatched
from hal.distributed import Exchange
from hal.errors import ContractError
from hal.formats import PackedWeight, quantize, simulate
from hal.reference import working

if TYPE_CHECKING:
    from hal.distributed import Group

__all__ = ["combine", "dispatch", "experts", "ffn", "route"]

EPSILON = 1e-20  # keeps vanishing scores from dividing by zero; as transformers and TileKernels


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
    """`moe.route`: experts and routing weights of each token.

    Args:
        logits: float32 [tokens, experts].
        bias: float32 [experts], added to the scores for the choice only; None for none.
        token_ids, table: int64 [tokens] and int32 [vocab, top_k]; where given, experts are `table[token_ids]` (hash
            routing) and nothing is chosen.
        top_k: experts per token.
        scoring: "sqrtsoftplus", "sigmoid" or "softmax".
        scale: factor of the weights after they were normalised to sum 1.

    Returns:
        weights float32 [tokens, top_k], and expert ids int32 [tokens, top_k], best first. Of equal scores the lowest
        expert wins.
    """
    scores = _scores(logits.to(working(logits)), scoring)
    if table is not None and token_ids is not None:
        chosen = table[token_ids].to(torch.int64)
    else:
        keys = scores if bias is None else scores + bias.to(scores.dtype)
        chosen = keys.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(-1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + EPSILON) * scale, chosen.to(torch.int32)


def _scores(logits: Tensor, scoring: str) -> Tensor:
    if scoring == "sqrtsoftplus":
        return torch.logaddexp(logits, torch.zeros_like(logits)).sqrt()
    if scoring == "sigmoid":
        return logits.sigmoid()
    if scoring == "softmax":
        return logits.softmax(-1)
    raise ContractError(f"unknown scoring {scoring!r}", where="moe.route", fix="take sqrtsoftplus, sigmoid or softmax")


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: quantise hidden states and bring a copy of each to every expert it was routed to.

    Args:
        x: [tokens, hidden], the model's dtype.
        expert_ids: int32 [tokens, top_k]; -1 is an unused slot. No other id repeats within a token.
        weights: float32 [tokens, top_k].
        group: processes that share the experts, `experts / group.size` each in rank order; None for one process.
        experts: of all processes.
        activation: quantiser of the rows.

    Returns:
        Rows grouped by expert. Their order within an expert is free; here it is by source process, token and slot.
        Codes carry no gradients: where `x` wants them, rows are the dequantised values and gradients pass straight
        through the quantiser.
    """
    tokens, top_k = expert_ids.shape
    ids = expert_ids.flatten().to(torch.int64)
    order = ids.argsort(stable=True)[int((ids < 0).sum()) :]
    counts = torch.bincount(ids[order], minlength=experts)
    index = torch.full_like(ids, -1)
    index[order] = torch.arange(len(order), device=ids.device)
    token = order // max(top_k, 1)
    if activation == "none" or (x.requires_grad and torch.is_grad_enabled()):
        rows, scales = simulate(x, activation)[token], None
    else:
        quantized = quantize(x, activation)[token]
        rows, scales = quantized.codes, quantized.scales
    factors, route = weights.flatten()[order], None
    if group is not None:
        route = Exchange.plan(group, counts)
        rows, factors = route.forward(rows), route.forward(factors)
        scales = None if scales is None else route.forward(scales)
        counts = route.counts
    back = index.view(tokens, top_k)
    return Dispatched(rows, scales, activation, factors, counts, back, tokens, top_k, x.dtype, route=route)


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: `w2 (silu(gate) * up * weight)` of every row, `gate` and `up` the halves of `w13 row`.

    `gate` is clamped from above, `up` on both sides. The product with the routing weight is rounded to the model's
    dtype, then by `activation`, then multiplied by `w2`.

    Args:
        dispatched: rows grouped by local expert.
        w13: [local experts, 2*inter, hidden], gate rows first.
        w2: [local experts, hidden, inter].
        clamp: limit of gate and up.
        activation: quantiser of the second product's input.

    Returns:
        [rows, hidden] in the model's dtype; padding rows are zero.
    """
    rows = dispatched.values()
    done = rows.new_zeros(rows.shape[0], w2.shape[-2])
    for expert, (start, count) in enumerate(
        zip(dispatched.offsets().tolist(), dispatched.counts.tolist(), strict=True)
    ):
        if not count:
            continue
        own = torch.arange(start, start + count, device=rows.device)
        gate, up = F.linear(rows[own], w13[expert].dequantize(rows.dtype)).chunk(2, dim=-1)
        inner = F.silu(gate.clamp(max=clamp)) * up.clamp(-clamp, clamp) * dispatched.weights[own, None].to(rows.dtype)
        inner = simulate(inner.to(dispatched.dtype).to(rows.dtype), activation)
        done = done.index_copy(0, own, F.linear(inner, w2[expert].dequantize(rows.dtype)))
    return done.to(dispatched.dtype)


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: bring rows back and add each token's up, in slot order in float32; then `residual`; round once.

    Args:
        rows: [rows, hidden], as `moe.experts` returned them; routing weights are in them already.
        dispatched: whose way back is taken.
        residual: [tokens, hidden] or None, for example the shared expert's output.

    Returns:
        [tokens, hidden] like `rows`. A token without used slots gets its residual, or zeros.
    """
    if dispatched.route is not None:
        if not isinstance(dispatched.route, Exchange):
            raise ContractError(
                f"rows were dispatched with a way back of type {type(dispatched.route).__name__}",
                where="moe.combine",
                fix="take dispatch and combine of one backend",
            )
        rows = dispatched.route.backward(rows)
    wide = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).to(working(rows))
    total = wide.new_zeros(dispatched.tokens, wide.shape[1])
    for slot in dispatched.index.unbind(1):
        total = total + wide[torch.where(slot < 0, len(rows), slot)]
    return (total if residual is None else total + residual.to(total.dtype)).to(rows.dtype)


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
    parts: Any = None,
) -> Tensor:
    """`moe.ffn`: the routed experts of a layer, `moe.dispatch`, `moe.experts` and `moe.combine` in a row.

    Arguments are those of the parts; `activation` quantises the input of both products. `parts` are the three with
    their attributes applied, these references by default.
    """
    if parts is None:
        parts = SimpleNamespace(
            dispatch=lambda *args: dispatch(*args, experts=experts, activation=activation),
            experts=lambda *args: _experts(*args, clamp=clamp, activation=activation),
            combine=combine,
        )
    dispatched = parts.dispatch(x, expert_ids, weights, group)
    y: Tensor = parts.combine(parts.experts(dispatched, w13, w2), dispatched, residual)
    return y


_experts = experts  # `ffn` has an attribute of this name
