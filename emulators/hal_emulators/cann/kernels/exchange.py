"""Rows to experts of other processes and back: aclnnMoeDistributeDispatchV4, aclnnMoeDistributeCombineV4.

Limits are those of the operators' documentation for A3 (CANN ops-transformer, mc2/moe_distribute_dispatch_v2). What the
first hands to the second is private to them: here each row's source process, token and slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.abi import Argument
from hal_emulators.cann.calls import kernel
from hal_emulators.cann.collective import gathered
from hal_emulators.cann.kernels.quantization import int8_rows

NOT_QUANTISED, DYNAMIC_INT8 = 0, 2


def _checked(x: tuple[int, int], ids: Argument, experts: int, world: int, unserved: tuple[object, ...]) -> None:
    tokens, hidden = x
    if any(unserved):
        raise NotImplementedError(
            f"shared experts, tensor parallel groups and special experts are not emulated: {unserved}"
        )
    if not 2 <= world <= 768 or experts % world or not 0 < experts <= 1024:
        raise ValueError(f"{experts} experts on {world} processes")
    if not 0 < tokens <= 512 or not 1024 <= hidden <= 8192 or not 0 < ids.shape[1] <= 16:
        raise ValueError(f"{tokens} tokens of {hidden} channels with {ids.shape[1]} experts each")


def _active(mask: Argument | None, ids: Argument) -> Tensor:
    """bool [tokens, k]"""
    if mask is None:
        return torch.ones(ids.shape, dtype=torch.bool)
    if tuple(mask.shape) not in (tuple(ids.shape), tuple(ids.shape[:1])):
        raise ValueError(f"the mask is {list(mask.shape)}, the ids {list(ids.shape)}")
    values = mask.values()
    if values.dim() == 1 and bool((values[1:] & ~values[:-1]).any()):
        raise ValueError("active tokens come first")
    return values.clone() if values.dim() == 2 else values[:, None].expand(ids.shape).clone()


@kernel("TTTTTTTsiiisiiiiiiiisiiiTTTTTTT", "aclnnMoeDistributeDispatchV4")
def dispatch(
    x: Argument,
    ids: Argument,
    smooth: Argument | None,
    mask: Argument | None,
    weights: Argument | None,
    elastic: Argument | None,
    performance: Argument | None,
    group: str,
    world: int,
    rank: int,
    experts: int,
    tensor_group: str,
    tensor_world: int,
    tensor_rank: int,
    shard: int,
    shared: int,
    shared_ranks: int,
    quantisation: int,
    batch: int,
    counting: int,
    algorithm: str,
    zero: int,
    copy: int,
    constant: int,
    rows: Argument,
    scales: Argument | None,
    assist: Argument,
    counts: Argument,
    received: Argument,
    tensor_counts: Argument | None,
    row_weights: Argument | None,
) -> None:
    """Rows of this process's experts, one expert after the other, in each by process, token and slot."""
    unserved = (smooth, weights, elastic, performance, tensor_world > 1, shard, shared_ranks, zero, copy, constant)
    _checked((x.shape[0], x.shape[1]), ids, experts, world, (*unserved, algorithm))
    if quantisation not in (NOT_QUANTISED, DYNAMIC_INT8) or batch not in (0, world * x.shape[0]):
        raise NotImplementedError(f"quantisation {quantisation} and a global batch of {batch} are not emulated")
    sizes = gathered(group, world, torch.tensor([x.shape[0]]))
    if bool((sizes != x.shape[0]).any()):
        raise ValueError(f"without a global batch every process brings as many tokens, not {sizes.flatten().tolist()}")
    all_ids = gathered(group, world, ids.values().long().where(_active(mask, ids), -1))
    if int(all_ids.max()) >= experts or (mask is None and int(all_ids.min()) < 0):
        raise ValueError(f"active expert ids lie in 0..{experts - 1}")
    local = experts // world
    mine = all_ids.flatten() - rank * local
    order = mine.where((mine >= 0) & (mine < local), local).argsort(stable=True)
    order = order[: int(((mine >= 0) & (mine < local)).sum())]
    slots = all_ids.shape[1] * all_ids.shape[2]
    source = torch.stack([order // slots, order % slots // all_ids.shape[2], order % all_ids.shape[2]], -1)
    values = gathered(group, world, x.values())[source[:, 0], source[:, 1]]
    if quantisation == DYNAMIC_INT8:
        values, factors = int8_rows(values)
        scales.memory[: len(order)] = factors  # type: ignore[union-attr]
    rows.memory[: len(order)] = values
    assist.memory[: 3 * len(order)] = source.flatten().int()
    each = torch.bincount(mine[order] * world + source[:, 0], minlength=local * world)
    total = each.view(local, world).sum(1)
    counts.write(total if counting else total.cumsum(0))
    received.write(each.cumsum(0).int())


@kernel("TTTTTTTTTTTTTTTTTTsiiisiiiiiiiiisiiiT", "aclnnMoeDistributeCombineV4")
def combine(
    rows: Argument,
    ids: Argument,
    assist: Argument,
    sent: Argument,
    weights: Argument,
    tensor_counts: Argument | None,
    mask: Argument | None,
    x_scale: Argument | None,
    weight_scale: Argument | None,
    groups: Argument | None,
    row_weights: Argument | None,
    shared_rows: Argument | None,
    elastic: Argument | None,
    original: Argument | None,
    alpha1: Argument | None,
    alpha2: Argument | None,
    vector: Argument | None,
    performance: Argument | None,
    group: str,
    world: int,
    rank: int,
    experts: int,
    tensor_group: str,
    tensor_world: int,
    tensor_rank: int,
    shard: int,
    shared: int,
    shared_ranks: int,
    batch: int,
    dtype: int,
    quantisation: int,
    listing: int,
    algorithm: str,
    zero: int,
    copy: int,
    constant: int,
    out: Argument,
) -> None:
    """out[t] = shared[t] + sum over slots of weights[t, slot] * its row, in float32, rounded once."""
    unserved = (x_scale, weight_scale, groups, elastic, original, alpha1, alpha2, vector, performance)
    rest = (tensor_world > 1, shard, shared_ranks, zero, copy, constant, quantisation, algorithm)
    _checked((out.shape[0], rows.shape[1]), ids, experts, world, (*unserved, *rest))
    ends = gathered(group, world, sent.values()[-1:].clone()).flatten().tolist()
    sources = gathered(group, world, assist.values()[: 3 * rows.shape[0]].view(-1, 3))
    values = gathered(group, world, rows.values())
    wanted = _active(mask, ids)
    slots = torch.zeros(*ids.shape, rows.shape[1])
    found = torch.zeros(ids.shape, dtype=torch.bool)
    for process, end in enumerate(ends):
        own = sources[process, :end, 0] == rank
        token, slot = sources[process, :end][own][:, 1:].long().unbind(-1)
        slots[token, slot], found[token, slot] = values[process, :end][own].float(), True
    if bool((found != wanted).any()):
        raise ValueError("rows came back for other slots than are active")
    total = torch.zeros(tuple(out.shape))
    for slot in range(ids.shape[1]):
        total += slots[:, slot] * weights.values()[:, slot, None]
    out.write(total if shared_rows is None else total + shared_rows.values().float().view(tuple(out.shape)))
