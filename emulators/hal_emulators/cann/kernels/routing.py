"""The mixture of experts' routing: aclnnMoeGatingTopK, MoeInitRoutingV3, MoeFinalizeRoutingV4, MoeTokenPermute and
MoeTokenUnpermute."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.abi import Argument
from hal_emulators.cann.calls import kernel
from hal_emulators.cann.kernels.quantization import int8_rows

SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 0, 1, 2
NOT_QUANTISED, DYNAMIC_INT8 = -1, 1
MOST_IDS = 16777215


def _scores(x: Tensor, norm: int) -> Tensor:
    if norm == SOFTMAX:
        return x.softmax(-1)
    return x.sigmoid() if norm == SIGMOID else torch.nn.functional.softplus(x, threshold=100.0).sqrt()


def _gate(
    x: Argument,
    bias: Argument | None,
    chosen: Tensor | None,
    k: int,
    groups: tuple[int, int],
    norm: int,
    scale: float,
    eps: float,
    outputs: tuple[Argument, Argument, Argument],
) -> None:
    if groups != (1, 1):
        raise NotImplementedError("groups of experts are not emulated")
    scores = _scores(x.values().float(), norm)
    keys = scores if bias is None else scores + bias.values().float()
    if chosen is None:
        chosen = keys.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, chosen)
    if norm != SOFTMAX:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    outputs[0].write(weights * scale)
    outputs[1].write(chosen)
    outputs[2].write(scores)


@kernel("TTiiiiiibddTTT", "aclnnMoeGatingTopK")
def gating_top_k(
    x: Argument,
    bias: Argument | None,
    k: int,
    k_group: int,
    group_count: int,
    group_mode: int,
    renorm: int,
    norm: int,
    flag: bool,
    scale: float,
    eps: float,
    y: Argument,
    ids: Argument,
    out: Argument,
) -> None:
    _gate(x, bias, None, k, (k_group, group_count), norm, scale, eps, (y, ids, out))


@kernel("TTTTiiiiiibddTTT", "aclnnMoeGatingTopKV2")
def gating_top_k_hash(
    x: Argument,
    bias: Argument | None,
    tokens: Argument | None,
    table: Argument | None,
    k: int,
    k_group: int,
    group_count: int,
    group_mode: int,
    renorm: int,
    norm: int,
    flag: bool,
    scale: float,
    eps: float,
    y: Argument,
    ids: Argument,
    out: Argument,
) -> None:
    """With a table, a token's experts are its row of the table."""
    chosen = None if tokens is None or table is None else table.values()[tokens.values().long()].long()
    _gate(x, bias, chosen, k, (k_group, group_count), norm, scale, eps, (y, ids, out))


@kernel("TTTTiiiiibiAiTTTT", "aclnnMoeInitRoutingV3")
def init_routing(
    x: Argument,
    expert_ids: Argument,
    scale: Argument | None,
    offset: Argument | None,
    active: int,
    capacity: int,
    experts: int,
    drop_pad: int,
    counting: int,
    counted: bool,
    quantisation: int,
    expert_range: list[int],
    index_kind: int,
    rows: Argument,
    index: Argument,
    counts: Argument,
    scales: Argument | None,
) -> None:
    """Rows sorted by expert; what lies behind the experts of the range is left as it was."""
    if drop_pad or scale is not None or index_kind or quantisation not in (NOT_QUANTISED, DYNAMIC_INT8):
        raise NotImplementedError("only gathered, unpadded rows, plain or in dynamic int8, are emulated")
    ids = expert_ids.values().flatten().long()
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= experts):
        raise ValueError(f"expert ids must lie in 0..{experts - 1}")
    low, high = expert_range
    inside = (ids >= low) & (ids < high)
    order = ids.where(inside, experts).argsort(stable=True)[: int(inside.sum())]
    place = torch.full_like(ids, -1)
    place[order] = torch.arange(len(order))
    index.write(place)
    tokens = order // expert_ids.shape[1]
    values = x.values()
    if quantisation == DYNAMIC_INT8:
        codes, factors = int8_rows(values)
        rows.memory[: len(order)] = codes[tokens]
        scales.memory[: len(order)] = factors[tokens]  # type: ignore[union-attr]
    else:
        rows.memory[: len(order)] = values[tokens]
    found = torch.bincount(ids[inside] - low, minlength=high - low)
    counts.write(found.cumsum(0) if counting == 0 else found)


@kernel("TTTTTTTTTTTiAAAiT", "aclnnMoeFinalizeRoutingV4")
def finalize_routing(
    rows: Argument,
    index: Argument,
    skip1: Argument | None,
    skip2: Argument | None,
    bias: Argument | None,
    scales: Argument | None,
    expert_ids: Argument | None,
    *others: object,
) -> None:
    """out[t] = skips + sum over k of scales[t, k] * rows[index of (t, k)]; modes 2 and 3 number slots by token."""
    *constants, drop_pad, zero, copy, constant, _, out = others
    if any(each is not None for each in constants) or drop_pad != 2 or bias is not None or zero or copy or constant:
        raise NotImplementedError("only unpadded rows without bias are emulated")
    where = index.values().long()
    if where.numel() and (int(where.min()) < 0 or int(where.max()) >= rows.shape[0]):
        raise ValueError(f"the way back must lie in 0..{rows.shape[0] - 1}")
    assert isinstance(out, Argument)
    slots = rows.values().float()[where].view(out.shape[0], -1, rows.shape[-1])
    factors = None if scales is None else scales.values().float()
    total = torch.zeros(out.shape)
    for slot in range(slots.shape[1]):
        total += slots[:, slot] if factors is None else slots[:, slot] * factors[:, slot, None]
    for skip in (skip1, skip2):
        total = total if skip is None else total + skip.values().float()
    out.write(total)


@kernel("TTibTT", "aclnnMoeTokenPermute")
def token_permute(tokens: Argument, ids: Argument, most: int, padded: bool, rows: Argument, place: Argument) -> None:
    """Every token once per id, sorted by id; `place` says where each (token, slot) went."""
    if padded or most not in (0, len(ids.values().flatten())):
        raise NotImplementedError("only all rows, unpadded, are emulated")
    flat = ids.values().flatten().long()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < MOST_IDS:
        raise ValueError(f"ids lie in 0..{MOST_IDS - 1}")
    order = flat.argsort(stable=True)
    rows.write(tokens.values()[order // (len(flat) // max(1, tokens.shape[0]))])
    place.write(order.argsort())


@kernel("TTTbAT", "aclnnMoeTokenUnpermute")
def token_unpermute(
    rows: Argument, place: Argument, weights: Argument | None, padded: bool, shape: list[int] | None, out: Argument
) -> None:
    """out[t] = sum over k of weights[t, k] * rows[place of (t, k)], in float32; a place may not repeat."""
    if padded or weights is None:
        raise NotImplementedError("only weighted, unpadded rows are emulated")
    where = place.values().long()
    if not torch.equal(where.sort().values, torch.arange(rows.shape[0])):
        raise ValueError(f"the way back is an order of all {rows.shape[0]} rows")
    slots = rows.values().float()[where].view(*weights.shape, rows.shape[1])
    out.write((slots * weights.values().float().unsqueeze(-1)).sum(1))
