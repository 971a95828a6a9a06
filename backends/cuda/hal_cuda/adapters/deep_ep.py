"""`moe.dispatch` and `moe.combine` over a group of processes with DeepEP's elastic buffer; within one, Triton's.

Rows arrive once per expert ("expanded"), each expert's from a multiple of `ALIGNMENT` on, which is what DeepGEMM's
grouped products want. Source: DeepEP, `deep_ep/buffers/elastic.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hal.derived import derived
from hal.dispatched import Dispatched
from hal.errors import ContractError
from hal_cuda.adapters import probe
from hal_cuda.adapters.declared import EP_TOKENS

if TYPE_CHECKING:
    from hal.distributed import Group

__all__ = ["Route", "combine", "dispatch"]

ALIGNMENT = 128
"""Rows; a multiple of what DeepGEMM asks for."""
MOST = EP_TOKENS


@dataclass(frozen=True, eq=False)
class Route:
    """The way back: the buffer, and its handle of one dispatch."""

    buffer: Any
    handle: Any
    alignment: int = ALIGNMENT


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: x[tokens, hidden] bfloat16, as it is or in FP8 blocks of 128. Row counts visit the host."""
    from hal_triton import experts as local
    from hal_triton.matmul import quantize

    if group is None or group.size == 1:
        alone: Dispatched = local.dispatch(x, expert_ids, weights, group, experts=experts, activation=activation)
        return alone
    tokens, top_k = expert_ids.shape
    if tokens > MOST:
        raise ContractError(
            f"{tokens} tokens in one process, DeepEP's buffer holds {MOST}",
            where="moe.dispatch by DeepEP",
            fix=f"run at most {MOST} tokens at a time, or set HAL_OPS='moe.dispatch=cuda.dispatch'",
        )
    eight = activation != "none"
    sent: Any = x.contiguous()
    if eight:
        codes, scales = quantize(sent, activation=activation)
        sent = codes, scales.float()
    buffer = _buffer(group, x.shape[1], top_k, eight)
    received, _, factors, handle, _ = buffer.dispatch(
        sent,
        topk_idx=expert_ids.long(),
        topk_weights=weights.float().contiguous(),
        num_experts=experts,
        num_max_tokens_per_rank=MOST,
        expert_alignment=ALIGNMENT,
        do_cpu_sync=True,
        do_expand=True,
    )
    rows, scales = received if eight else (received, None)
    counts = handle.num_unaligned_recv_tokens_per_expert.long()
    return Dispatched(
        rows,
        None if scales is None else scales.to(torch.float8_e8m0fnu),
        activation,
        factors,
        counts,
        _index(expert_ids),
        tokens,
        top_k,
        x.dtype,
        starts=handle.psum_num_recv_tokens_per_expert.long() - counts,
        route=Route(buffer, handle),
    )


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: rows[rows, hidden] bfloat16 back to their processes and tokens, summed there once."""
    if not isinstance(dispatched.route, Route):
        from hal_triton import experts as local

        summed: Tensor = local.combine(rows, dispatched, residual)
        return summed
    way = dispatched.route
    bias = None if residual is None else residual.contiguous()
    y: Tensor = way.buffer.combine(rows.contiguous(), way.handle, bias=bias)[0]
    return y


def _buffer(group: Group, hidden: int, top_k: int, eight: bool) -> Any:
    """One per group and shape, kept as long as the group."""

    def make() -> Any:
        return probe.function("deep_ep", "ElasticBuffer")(
            group.process_group,
            num_max_tokens_per_rank=MOST,
            hidden=hidden,
            num_topk=top_k,
            use_fp8_dispatch=eight,
            deterministic=True,
            allow_multiple_reduction=False,
        )

    return derived(group, ("DeepEP", hidden, top_k, eight), make)


def _index(expert_ids: Tensor) -> Tensor:
    """Slots as rows of their own, -1 where unused: `Route` knows where each of them went."""
    place = torch.arange(expert_ids.numel(), device=expert_ids.device).view(expert_ids.shape)
    return torch.where(expert_ids >= 0, place, -1)
