"""`moe.ffn` over a group of processes in vllm-ascend's one operator, which weights rows on their way back.

It rounds gate and up to float16 and nothing before the second product, as the kernel declares. Source:
csrc/mc2/dispatch_ffn_combine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.derived import derived
from hal_ascend import exchange, gated
from hal_ascend.cube import cube_scales, fractions

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight


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
    """`moe.ffn` of `w8a8_int8`: x[tokens, hidden] -> y[tokens, hidden]; within a process as `gated.ffn`."""
    words = {"experts": experts, "clamp": clamp, "activation": activation}
    if group is None or group.size == 1:
        return gated.ffn(x, expert_ids, weights, w13, w2, residual, group, **words)
    lists = [[derived(weight, ("ascend", "fractions"), lambda w=weight: fractions(w.codes))] for weight in (w13, w2)]
    scales = [[derived(weight, ("ascend", "cube scales"), lambda w=weight: _scales(w))] for weight in (w13, w2)]

    def wave(x: Tensor, expert_ids: Tensor, weights: Tensor, residual: Tensor) -> Tensor:
        """An unused slot takes its turn among the experts and counts nothing."""
        used = expert_ids >= 0
        turn = torch.arange(used.numel(), device=x.device, dtype=torch.int32).view_as(expert_ids) % experts
        y, _ = torch.ops._C_ascend.dispatch_ffn_combine(
            x=x.where(used.any(1, keepdim=True), 0),
            weight1=lists[0],
            weight2=lists[1],
            expert_idx=expert_ids.where(used, turn),
            scale1=scales[0],
            scale2=scales[1],
            bias1=[],
            bias2=[],
            probs=weights.where(used, 0),
            group=exchange.communicator(group),
            max_output_size=group.size * expert_ids.numel(),
            out=torch.empty_like(x),
            expert_token_nums=expert_ids.new_empty(1, w13.shape[0]),
            swiglu_limit=clamp,
        )
        return y + residual

    return exchange.in_waves(wave, x, expert_ids, weights, residual, group)


def _scales(weight: PackedWeight) -> Tensor:
    """int64 [experts, outputs]"""
    assert weight.scales is not None
    return cube_scales(weight.scales.flatten(1))
