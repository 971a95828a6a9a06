"""`moe.ffn` over a group of processes with torch_npu's own exchange of tokens; within one process, its three parts.

The exchange would multiply by routing weights on the way back, which is one rounding later than the contract's. So a
row takes its token's experts and weights along, in channels behind its own, and the way back multiplies by one. Limits:
CANN ops-transformer, mc2/moe_distribute_dispatch_v2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch_npu
from torch import Tensor

from hal.derived import derived
from hal.dispatched import Dispatched
from hal_ascend import experts as products
from hal_ascend import routing
from hal_ascend.quantization import quantize_int8, quantize_mx

if TYPE_CHECKING:
    from collections.abc import Callable

    from hal.distributed import Group
    from hal.formats import PackedWeight

MOST_TOKENS, LEAST_CHANNELS, STEP = 512, 1024, 32
COUNTS = 1  # expert_token_nums_type: rows of each expert, not their running sum


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
    """`moe.ffn`: x[tokens, hidden] bfloat16 -> y[tokens, hidden]; weights are those of this process's experts."""
    if group is None or group.size == 1:
        words = {"experts": experts, "clamp": clamp, "activation": activation}
        return parts(x, expert_ids, weights, w13, w2, residual, group, **words)

    def through(sent: Dispatched) -> Tensor:
        return _products(activation)(sent, w13, w2, clamp=clamp, activation=activation)

    def wave(x: Tensor, expert_ids: Tensor, weights: Tensor, residual: Tensor) -> Tensor:
        return _wave(x, expert_ids, weights, residual, group, experts, activation, through)

    return in_waves(wave, x, expert_ids, weights, residual, group)


def parts(
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
    """`moe.ffn` by its three parts; between processes rows travel by `all_to_all`."""
    dispatch = routing.dispatch if activation == "int8_token" else routing.dispatch_mx
    sent = dispatch(x, expert_ids, weights, group, experts=experts, activation=activation)
    rows = _products(activation)(sent, w13, w2, clamp=clamp, activation=activation)
    return routing.combine(rows, sent, residual)


def _products(activation: str) -> Callable[..., Tensor]:
    return products.experts_int8 if activation == "int8_token" else products.experts_mx


def in_waves(
    wave: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    residual: Tensor | None,
    group: Group,
) -> Tensor:
    """y[tokens, hidden] of `wave(x, expert_ids, weights, residual)`, called as often by every process of the group and
    with as many tokens, at most `MOST_TOKENS`; unused slots have the expert -1."""
    tokens = len(x)
    most = int(group.all_to_all(torch.full((group.size,), tokens, device=x.device), *[[1] * group.size] * 2).max())
    whole = x.new_zeros(most, x.shape[1]) if residual is None else _padded(residual, most, 0)
    x, expert_ids, weights = (_padded(each, most, fill) for each, fill in ((x, 0), (expert_ids, -1), (weights, 0)))
    done = [whole[:0]]
    for begin in range(0, most, MOST_TOKENS):
        part = slice(begin, begin + MOST_TOKENS)
        done.append(wave(x[part], expert_ids[part], weights[part], whole[part]))
    return torch.cat(done)[:tokens]


def _padded(x: Tensor, most: int, fill: int) -> Tensor:
    """Every process brings as many tokens; those behind `x` use no slot."""
    return torch.cat([x, x.new_full((most - len(x), x.shape[1]), fill)])


def _wave(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    residual: Tensor,
    group: Group,
    experts: int,
    activation: str,
    through: Callable[[Dispatched], Tensor],
) -> Tensor:
    """As many tokens of every process, at most `MOST_TOKENS`."""
    hidden = x.shape[1]
    used = expert_ids >= 0
    ids = expert_ids.where(used, 0)
    luggage = torch.cat([expert_ids, weights.view(torch.int32)], 1).view(torch.bfloat16)
    width = max(LEAST_CHANNELS, -(-(hidden + luggage.shape[1]) // STEP) * STEP)
    words = {**_of(group), "moe_expert_num": experts, "x_active_mask": used}
    rows, _, assist, counts, received, tensor_received, _ = torch_npu.npu_moe_distribute_dispatch_v2(
        torch.cat([x, luggage, x.new_zeros(len(x), width - hidden - luggage.shape[1])], 1),
        ids,
        expert_token_nums_type=COUNTS,
        **words,
    )
    carried = rows[:, hidden : hidden + luggage.shape[1]].contiguous().view(torch.int32)
    sent = _dispatched(rows[:, :hidden], carried, counts, group.rank, expert_ids, activation)
    back = through(sent)
    y: Tensor = torch_npu.npu_moe_distribute_combine_v2(
        torch.cat([back, back.new_zeros(len(back), width - hidden)], 1),
        ids,
        assist,
        received,
        torch.ones_like(weights),
        tp_send_counts=tensor_received,
        shared_expert_x=torch.cat([residual, residual.new_zeros(len(x), width - hidden)], 1),
        **words,
    )
    return y[:, :hidden]


def _dispatched(
    rows: Tensor, carried: Tensor, counts: Tensor, rank: int, expert_ids: Tensor, activation: str
) -> Dispatched:
    """Rows as they arrived, quantised, each with the weight that its token has for the expert it came to."""
    tokens, top_k = expert_ids.shape
    expert = products.expert_of_row(len(rows), counts) + rank * len(counts)
    ids, factors = carried[:, :top_k], carried[:, top_k:].view(torch.float32)
    weights = factors.where(ids == expert.unsqueeze(1), 0.0).sum(1)
    if activation == "int8_token":
        codes, scales = quantize_int8(rows.contiguous(), activation=activation)
    else:
        codes, scales = quantize_mx(rows.contiguous(), activation=activation)
    index = torch.full_like(expert_ids, -1, dtype=torch.int64)  # the way back is the operator's
    return Dispatched(codes, scales, activation, weights, counts, index, tokens, top_k, rows.dtype)


def _of(group: Group) -> dict[str, Any]:
    """The exchange's words for the group."""
    return {"group_ep": communicator(group), "ep_world_size": group.size, "ep_rank_id": group.rank}


def communicator(group: Group) -> str:
    """HCCL's name of one over the group's processes, made for the operators, which want it to carry nothing else."""

    def make() -> Any:
        ranks = torch.distributed.get_process_group_ranks(group.process_group)
        return torch.distributed.new_group(ranks, backend="hccl", use_local_synchronization=True)

    own = derived(group, ("ascend", "exchange"), make)
    name: str = own._get_backend(torch.device("npu")).get_hccl_comm_name(group.rank)
    return name
