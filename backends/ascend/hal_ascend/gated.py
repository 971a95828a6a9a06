"""`moe.ffn` within a process, the gate inside the first product and routing weights on the way back.

So nothing is rounded before the second product, where the contract rounds, as the kernel declares. torch_npu's gated
product knows no limit, vllm-ascend's of the same name does. Sources: aclnnGroupedMatmulSwigluQuantV2; vllm-ascend,
csrc/gmm/grouped_matmul_swiglu_quant_v2; aclnnMoeTokenPermute, aclnnMoeTokenUnpermute.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import torch
import torch_npu
from torch import Tensor

from hal.derived import derived
from hal_ascend import exchange
from hal_ascend.cube import fractions
from hal_ascend.experts import COUNTS, channel_scales, grouped

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
    """`moe.ffn` of `w8a8_int8`: x[tokens, hidden] -> y[tokens, hidden]; between processes by its three parts."""
    if (group is not None and group.size > 1) or not expert_ids.numel():
        rest = {"experts": experts, "clamp": clamp, "activation": activation}
        return exchange.parts(x, expert_ids, weights, w13, w2, residual, group, **rest)
    used = expert_ids >= 0
    ids = expert_ids.where(used, experts)  # behind the rows of all experts
    rows, place = torch_npu.npu_moe_token_permute(x, ids)
    codes, scales = torch_npu.npu_dynamic_quant(rows)
    flat = ids.flatten().long()
    counts = flat.new_zeros(experts + 1).index_add_(0, flat, torch.ones_like(flat))[:experts]
    first: tuple[Any, ...] = codes, [_first(w13)], [channel_scales(w13)], scales, counts
    if clamp == inf:
        inner, inner_scales = torch_npu.npu_grouped_matmul_swiglu_quant_v2(*first, group_list_type=COUNTS)
    else:
        limited = torch.ops._C_ascend.grouped_matmul_swiglu_quant_v2
        inner, inner_scales = limited(*first, group_list_type=COUNTS, swiglu_limit=clamp)
    words = {"scale": [channel_scales(w2)], "per_token_scale": [inner_scales], "output_dtype": x.dtype}
    done = grouped(inner, w2.codes.transpose(1, 2), counts, **words)
    computed = torch.arange(len(done), device=x.device) < counts.sum()
    done = done.where(computed.unsqueeze(1), 0)  # what nobody computed may be NaN
    y: Tensor = torch_npu.npu_moe_token_unpermute(done, place, probs=weights.where(used, 0))
    return y if residual is None else y + residual


def _first(weight: PackedWeight) -> Tensor:
    return derived(weight, ("ascend", "fractions"), lambda: fractions(weight.codes))
