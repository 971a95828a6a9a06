"""Routing with torch_npu: choosing experts, sorting rows by expert, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch_npu
from hal_plain import experts as plain
from torch import Tensor

from hal_ascend.quantization import in_plain_torch, quantize_mx

if TYPE_CHECKING:
    from hal.dispatched import Dispatched
    from hal.distributed import Group

NORMS = {"sigmoid": 1, "sqrtsoftplus": 2}
EPSILON = 1e-20
PLAIN, DYNAMIC_INT8 = -1, 1  # quant_mode of npu_moe_init_routing_v2
COUNTS = 1  # expert_tokens_num_type: rows of each expert, not their running sum
BY_TOKEN = 2  # drop_pad_mode: nothing dropped, slots numbered token by token


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
    """`moe.route`: logits[tokens, experts] -> weights[tokens, top_k] float32, expert_ids[tokens, top_k] int32."""
    if not len(logits):
        return logits.new_empty(0, top_k), logits.new_empty(0, top_k, dtype=torch.int32)
    hashed = table is not None and token_ids is not None
    weights, expert_ids, _ = torch_npu.npu_moe_gating_top_k(
        logits,
        top_k,
        bias=None if hashed else bias,
        input_ids=token_ids if hashed else None,
        tid2eid=table if hashed else None,
        norm_type=NORMS[scoring],
        routed_scaling_factor=scale,
        eps=EPSILON,
    )
    return weights, expert_ids


def dispatch(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    group: Group | None,
    *,
    experts: int,
    activation: str,
    quantizer: Callable[..., tuple[Tensor, Tensor]] = in_plain_torch,
) -> Dispatched:
    """`moe.dispatch`: x[tokens, hidden] -> rows sorted by expert, quantised, on the process that has the expert.

    An unused slot goes to an expert behind the last, outside the range that is computed. The operator quantises to int8
    itself; other quantisers see a row once per slot, which spares a sort of integers (on the AI CPU).
    """
    tokens, top_k = expert_ids.shape
    slots = tokens * top_k
    int8 = activation == "int8_token"
    if not slots:
        return plain.dispatch(x, expert_ids, weights, group, experts=experts, activation=activation)
    rows, place, counts, factors = torch_npu.npu_moe_init_routing_v2(
        x,
        expert_ids.where(expert_ids >= 0, experts),
        active_num=slots,
        expert_num=experts + 1,
        expert_tokens_num_type=COUNTS,
        expert_tokens_num_flag=True,
        quant_mode=DYNAMIC_INT8 if int8 else PLAIN,
        active_expert_range=[0, experts],
        row_idx_type=0,
    )
    scales = factors.unsqueeze(1) if int8 else None
    if not int8 and activation != "none":
        rows, scales = quantizer(rows, activation=activation)
    index = place.long().view(tokens, top_k)
    sorted_weights = weights.new_zeros(slots + 1)
    sorted_weights[index.where(index >= 0, slots).flatten()] = weights.flatten()
    return plain.exchanged(rows, scales, activation, sorted_weights[:slots], counts, index, x.dtype, group)


dispatch_mx = partial(dispatch, quantizer=quantize_mx)
"""`moe.dispatch` on the 950, which has an operator for blocks of e4m3."""


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: rows[rows, hidden] -> y[tokens, hidden]; the routing weights are in the rows already."""
    rows = plain.returned(rows, dispatched)
    index = dispatched.index
    if not index.numel() or not len(rows):
        empty = rows.new_zeros(dispatched.tokens, rows.shape[1])
        return empty if residual is None else empty + residual
    return torch_npu.npu_moe_finalize_routing(
        rows,
        residual,
        None,
        None,
        (index >= 0).to(rows.dtype),
        index.clamp_min(0).int().flatten(),
        None,
        drop_pad_mode=BY_TOKEN,
        k=dispatched.top_k,
    )
