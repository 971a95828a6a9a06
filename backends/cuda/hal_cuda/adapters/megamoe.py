"""`moe.ffn` over a group of processes with DeepGEMM's Mega MoE: dispatch, both products and combine in one kernel.

Within one process it is Triton's three kernels. Source: DeepGEMM, `deep_gemm/mega/__init__.py` and
`tests/test_mega_moe.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hal.derived import derived
from hal.errors import ContractError
from hal_cuda.adapters import probe
from hal_cuda.adapters.declared import EP_TOKENS
from hal_cuda.adapters.deep_gemm import scales_of

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight

__all__ = ["ffn"]

MOST = EP_TOKENS


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
    """`moe.ffn`: x[tokens, hidden] bfloat16, rows in FP8 blocks of 32, `mxfp4` weights of this process's experts."""
    from hal_triton import experts as local
    from hal_triton.matmul import quantize

    if group is None or group.size == 1:
        sent = local.dispatch(x, expert_ids, weights, group, experts=experts, activation=activation)
        rows = local.experts(sent, w13, w2, clamp=clamp, activation=activation)
        alone: Tensor = local.combine(rows, sent, residual)
        return alone
    tokens, top_k = expert_ids.shape
    if tokens > MOST:
        raise ContractError(
            f"{tokens} tokens in one process, Mega MoE's buffer holds {MOST}",
            where="moe.ffn by Mega MoE",
            fix=f"run at most {MOST} tokens at a time, or set HAL_OPS='moe.ffn=!cuda.ffn.megamoe'",
        )
    buffer = _buffer(group, experts, top_k, x.shape[1], w2.shape[2])
    codes, scales = quantize(x.contiguous(), activation=activation)
    buffer.x[:tokens].copy_(codes)
    buffer.x_sf[:tokens].copy_(scales.view(torch.int32))
    buffer.topk_idx[:tokens].copy_(expert_ids)
    buffer.topk_weights[:tokens].copy_(weights.where(expert_ids >= 0, 0.0))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    l1, l2 = _transformed(w13, w2)
    probe.function("deep_gemm", "fp8_fp4_mega_moe")(y, l1, l2, buffer, activation_clamp=clamp, fast_math=False)
    return y if residual is None else y + residual


def _buffer(group: Group, experts: int, top_k: int, hidden: int, inner: int) -> Any:
    """Memory that all processes see; one per group and shape, kept as long as the group."""

    def make() -> Any:
        create = probe.function("deep_gemm", "get_symm_buffer_for_mega_moe")
        return create(group.process_group, experts, MOST, top_k, hidden, inner)

    return derived(group, ("Mega MoE", experts, top_k, hidden, inner), make)


def _transformed(w13: PackedWeight, w2: PackedWeight) -> Any:
    """Both weights as the kernel reads them: gate and up rows in turn, scales in the order of its copies."""

    def make() -> Any:
        pairs = ((weight.codes.view(torch.int8), scales_of(weight)) for weight in (w13, w2))
        return probe.function("deep_gemm", "transform_weights_for_mega_moe")(*pairs), w2

    return derived(w13, ("Mega MoE", id(w2)), make)[0]
