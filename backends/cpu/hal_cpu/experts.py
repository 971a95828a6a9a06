"""The mixture of experts: rows grouped by expert, two products per expert that has any.

An expert's rows are gathered when its turn comes and its output is added to its tokens right away, so that a whole layer needs no
`tokens x top_k` copy of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.formats import simulate
from hal_cpu.matmul import multiply
from hal_cpu.spans import working_dtype
from hal_cpu.topk import top_k as best

if TYPE_CHECKING:
    from hal.formats import PackedWeight

SCORING: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrtsoftplus": lambda logits: F.softplus(logits).sqrt(),
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
}


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
    """`moe.route`: logits[tokens, experts] -> weights[tokens, top_k], expert_ids[tokens, top_k] int32."""
    scores = SCORING[scoring](logits)
    if table is not None and token_ids is not None:
        chosen = table[token_ids].long()
    else:
        chosen = best(scores if bias is None else scores + bias, top_k)
    weights = scores.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True) * scale, chosen.int()


def ffn(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    w13: PackedWeight,
    w2: PackedWeight,
    residual: Tensor | None,
    group: object | None,
    *,
    experts: int,
    clamp: float,
    activation: str,
) -> Tensor:
    """`moe.ffn`: x[tokens, hidden] -> y[tokens, hidden], the routed experts of one process."""
    work = working_dtype(x)
    rounded = simulate(x, activation).to(work)
    token, factors, counts = _grouped(expert_ids, weights.to(work), experts)
    y = torch.zeros_like(rounded)
    first = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        rows, factor = token[first : first + count], factors[first : first + count]
        first += count
        out = _expert(rounded[rows], factor, w13, w2, expert, x.dtype, clamp, activation)
        y.index_add_(0, rows, out.to(work))
    return (y if residual is None else y.add_(residual)).to(x.dtype)


def _grouped(expert_ids: Tensor, weights: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Used slots sorted by expert: token of each row, its routing weight, rows per expert."""
    flat = expert_ids.flatten().long()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat + 1, minlength=experts + 1).tolist()
    order = order[counts[0] :]  # -1 is an unused slot
    return order // expert_ids.shape[1], weights.flatten()[order], counts[1:]


def _expert(
    x: Tensor, factor: Tensor, w13: PackedWeight, w2: PackedWeight, expert: int, dtype: torch.dtype, clamp: float, activation: str
) -> Tensor:
    """Clamped SwiGLU of one expert's rows, the routing weight before the second product, in `dtype`."""
    gate, up = multiply(x, w13, expert).chunk(2, dim=-1)
    inner = F.silu(gate.clamp(max=clamp)).mul_(up.clamp(-clamp, clamp)).mul_(factor.unsqueeze(1))
    rounded = simulate(inner.to(dtype), activation).to(x.dtype)
    return multiply(rounded, w2, expert).to(dtype)
