"""Routing, and the way of rows to experts and back."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import BYTES, FLOATS, INT32, Checks, operator

IDS = (torch.int32, torch.int64)


def _best(keys: Tensor, topk: int) -> Tensor:
    """Indices of the largest keys, the lowest index first among equal ones."""
    return torch.argsort(-keys, dim=-1, stable=True)[..., :topk]


def _give(
    weights: Tensor, experts: Tensor, reduce_weight: Tensor | None, expert_id: Tensor | None
) -> tuple[Tensor, Tensor]:
    weights, experts = weights.float(), experts.int()
    if reduce_weight is not None:
        weights = reduce_weight.copy_(weights)
    if expert_id is not None:
        experts = expert_id.copy_(experts)
    return weights, experts


@operator
def moe_softplus_topk(
    input: Tensor,
    topk: int,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    bias: Tensor | None = None,
    route_scale: float = 1.0,
    reduce_weight: Tensor | None = None,
    expert_id: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check = Checks("moe_softplus_topk", topk=topk)
    check("input", input, FLOATS, "tokens experts")
    check("bias", bias, (torch.float32,), "experts")
    check("input_ids", input_ids, IDS, "tokens")
    check("tid2eid", tid2eid, IDS, "_ topk")
    check("reduce_weight", reduce_weight, (torch.float32,), "tokens topk")
    check("expert_id", expert_id, INT32, "tokens topk")
    check.that((input_ids is None) == (tid2eid is None), "input_ids and tid2eid go together")
    check.that(0 < topk <= input.shape[-1], f"topk is {topk} of {input.shape[-1]} experts")
    scores = torch.log1p(torch.exp(-input.float().abs())).add(input.float().clamp(min=0)).sqrt()
    if tid2eid is not None and input_ids is not None:
        check.indices("input_ids", input_ids, 0, len(tid2eid))
        experts = tid2eid[input_ids.long()].long()
    else:
        experts = _best(scores if bias is None else scores + bias, topk)
    weights = torch.take_along_dim(scores, experts, -1)
    return _give(weights / weights.sum(-1, keepdim=True) * route_scale, experts, reduce_weight, expert_id)


@operator
def moe_sigmoid_topk(
    input: Tensor,
    topk: int,
    normalize: bool = False,
    num_expert_group: int = -1,
    topk_group: int = 0,
    mask: Tensor | None = None,
    normed_by: str = "topk_logit",
    route_scale: float = 1.0,
    score_bias: Tensor | None = None,
    reduce_weight: Tensor | None = None,
    expert_id: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check = Checks("moe_sigmoid_topk", topk=topk)
    check("input", input, FLOATS, "tokens experts")
    check("score_bias", score_bias, (torch.float32,), "experts")
    check("reduce_weight", reduce_weight, (torch.float32,), "tokens topk")
    check("expert_id", expert_id, INT32, "tokens topk")
    check.absent(mask=mask)
    check.that(normed_by == "topk_logit", f"normed_by is {normed_by!r}, wanted 'topk_logit'")
    scores = 1 / (1 + torch.exp(-input.float()))
    keys = scores if score_bias is None else scores + score_bias
    if num_expert_group > 1:
        groups = keys.unflatten(-1, (num_expert_group, -1))
        best = groups.topk(2, dim=-1).values.sum(-1) if score_bias is not None else groups.amax(-1)
        kept = torch.zeros_like(best).scatter_(-1, best.topk(topk_group, dim=-1).indices, 1.0).bool()
        keys = groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)
    experts = _best(keys, topk)
    weights = torch.take_along_dim(scores, experts, -1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return _give(weights * route_scale, experts, reduce_weight, expert_id)


@operator
def moe_gen_idx(expert_id: Tensor, expert_num: int, return_token2expert_idx: bool = False) -> tuple[Tensor, ...]:
    """The vendor sorts without promising an order inside an expert: here the last token comes first."""
    check = Checks("moe_gen_idx")
    check("expert_id", expert_id, INT32, "tokens topk")
    check.that(not return_token2expert_idx, "return_token2expert_idx is not emulated")
    check.indices("expert_id", expert_id, 0, expert_num)
    flat = expert_id.flatten()
    order = torch.arange(len(flat)).flip(0)
    order = order[torch.argsort(flat[order], stable=True)]
    combine = torch.empty_like(order)
    combine[order] = torch.arange(len(order))
    count = torch.zeros(expert_num, dtype=torch.int64).index_add_(
        0, flat.long(), torch.ones_like(flat, dtype=torch.int64)
    )
    total = torch.cat([count.new_zeros(1), count.cumsum(0)])
    tokens = torch.div(order, max(1, expert_id.shape[1]), rounding_mode="floor")
    return tokens.int(), combine.int(), count.int(), total.int()


@operator
def moe_expand_input(
    input: Tensor,
    gather_idx: Tensor,
    cusum_token_count: Tensor | None = None,
    start_expert_id: int = 0,
    expert_size: int = 0,
    output: Tensor | None = None,
) -> Tensor:
    check = Checks("moe_expand_input")
    check("input", input, (*FLOATS, *BYTES), "tokens hidden")
    check("gather_idx", gather_idx, INT32, "rows")
    check("cusum_token_count", cusum_token_count, INT32, "_")
    check("output", output, (input.dtype,), "rows hidden")
    check.indices("gather_idx", gather_idx, 0, len(input))
    begin, end = 0, len(gather_idx)
    if cusum_token_count is not None:
        begin, end = (int(cusum_token_count[at]) for at in (start_expert_id, start_expert_id + expert_size))
    made = output if output is not None else _unwritten(len(gather_idx), input.shape[1], input.dtype)
    made[: end - begin] = input[gather_idx[begin:end].long()]
    return made


@operator
def moe_combine_result(
    input: Tensor,
    reduce_weight: Tensor,
    gather_ids: Tensor,
    residual: Tensor | None,
    cusum_token_count: Tensor | None,
    start_expert_id: int,
    expert_size: int,
    bias: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    check = Checks("moe_combine_result")
    check("input", input, FLOATS, "rows hidden")
    check("reduce_weight", reduce_weight, (torch.float32,), "tokens topk")
    check("gather_ids", gather_ids, INT32, "pairs")
    check("residual", residual, (input.dtype,), "tokens hidden")
    check("cusum_token_count", cusum_token_count, INT32, "_")
    check.absent(bias=bias)
    check.that(gather_ids.numel() == reduce_weight.numel(), "gather_ids must have one id per routing weight")
    begin, end = 0, len(input)
    if cusum_token_count is not None:
        begin, end = (int(cusum_token_count[at]) for at in (start_expert_id, start_expert_id + expert_size))
    else:
        check.indices("gather_ids", gather_ids, 0, len(input))
    made = torch.zeros(reduce_weight.shape[0], input.shape[1], dtype=torch.float32)
    for slot, place in enumerate(gather_ids.view(reduce_weight.shape).long().unbind(1)):
        mine = ((place >= begin) & (place < end)).nonzero().flatten()
        made[mine] += reduce_weight[mine, slot, None] * input[place[mine] - begin].float()
    made = (made if residual is None else made + residual.float()).to(input.dtype)
    return made if output is None else output.copy_(made)


@operator
def moe_active(
    input: Tensor,
    act_mode: str,
    is_gated: bool,
    output: Tensor | None = None,
    bias: Tensor | None = None,
    cusum_token_count: Tensor | None = None,
    start_expert_id: int = 0,
    expert_size: int = 0,
    high_precision: bool = False,
    gelu_approximate: str = "none",
    swiglu_limit: int = 0,
    weight: Tensor | None = None,
) -> Tensor:
    check = Checks("moe_active")
    check("input", input, FLOATS, "rows channels")
    check.absent(bias=bias, weight=weight, cusum_token_count=cusum_token_count)
    check.that(act_mode == "silu", f"act_mode {act_mode!r} is not emulated")
    check.that(isinstance(swiglu_limit, int) and 0 <= swiglu_limit < 256, f"swiglu_limit is {swiglu_limit!r}")
    value = input.float()
    if is_gated:
        half = value.shape[-1] // 2
        gate, up = value[:, :half], value[:, half:]
        if swiglu_limit:
            gate, up = gate.minimum(torch.tensor(float(swiglu_limit))), up.clip(-swiglu_limit, swiglu_limit)
        value = gate / (1 + torch.exp(-gate)) * up
    else:
        value = value / (1 + torch.exp(-value))
    made = value.to(input.dtype)
    return made if output is None else output.copy_(made)


def _unwritten(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory nobody wrote: NaN where the dtype has one."""
    return torch.full((rows, columns), torch.nan if dtype.is_floating_point else -1, dtype=dtype)
