"""The mixture of experts in plain torch: rows sorted by expert, two products per tile of an expert's rows."""

from __future__ import annotations

from collections.abc import Iterator
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
    counts = ids.new_zeros(experts + 1).index_add_(0, ids + 1, torch.ones_like(ids))[1:]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    token = order // max(1, top_k)
    if activation == "none":
        rows, scales = x[token], None
    else:
        quantized = quantize(x, activation)[token]
        rows, scales = quantized.codes, quantized.scales
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
    """`moe.experts`: rows of every local expert through it, [rows, hidden] in the model's dtype; padding is zero.

    Rows go in tiles of one expert each, whose number and size follow from shapes: which expert a tile has, and which of
    its rows, only the device knows.
    """
    values, local = dispatched.values(), len(dispatched.counts)
    out = torch.zeros(len(values) + 1, w2.shape[-2], dtype=dispatched.dtype, device=values.device)
    size = max(1, -(-len(values) // local))
    for expert, rows in _tiles(dispatched, size, min(len(values), len(values) // size + local)):
        some = rows.clamp_max(len(values) - 1)
        gate_up = F.linear(values[some], w13.take(expert).dequantize()[0])
        inner = simulate(activated(gate_up, dispatched.weights[some], clamp, dispatched.dtype).float(), activation)
        out[rows] = F.linear(inner, w2.take(expert).dequantize()[0]).to(out.dtype)
    return out[:-1]


def _tiles(dispatched: Dispatched, size: int, tiles: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Expert [1] and rows [size] of every tile, int64; the number of all rows where there are no more."""
    counts, offsets = dispatched.counts, dispatched.offsets()
    each = torch.div(counts + size - 1, size, rounding_mode="floor")
    ends = each.cumsum(0)
    number = torch.arange(tiles, device=ends.device)
    expert = (number.unsqueeze(1) >= ends).sum(-1).clamp_max(len(ends) - 1)
    inside = (number - (ends - each)[expert]).unsqueeze(1) * size + torch.arange(size, device=ends.device)
    rows = (offsets[expert].unsqueeze(1) + inside).where(inside < counts[expert].unsqueeze(1), len(dispatched.rows))
    return zip(expert.unsqueeze(1).unbind(), rows.unbind(), strict=True)


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
