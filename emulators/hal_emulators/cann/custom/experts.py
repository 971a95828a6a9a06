"""vllm-ascend's fused experts in int8: of several processes in one operator (csrc/mc2/dispatch_ffn_combine), and a
product with the gate behind it.

What the first rounds is read from its kernel: rows to int8 when they leave, each product with its channels' scales to
float16, the gate straight to int8, rows to x's dtype when they come back, and there their weighted sum once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.collective import gathered, members
from hal_emulators.cann.cube import scales
from hal_emulators.cann.custom import kernel
from hal_emulators.cann.kernels.gated import MOST_FEATURES, MOST_OUTPUTS, gated_int8, swiglu
from hal_emulators.cann.kernels.quantization import int8_rows

MOST_PROCESSES = 32  # vllm-ascend uses it for no more
WINDOW = 200 << 20  # bytes of HCCL_BUFFSIZE, as it is where nobody sets it


def _product(codes: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """Sums of integers times their channels' scales, in float16."""
    return (codes.double() @ weight.double() * factors.double()).half().float()


def _refused(tokens: int, size: int, ids: Tensor, x: Tensor, experts: int) -> str:
    if not 2 <= size <= MOST_PROCESSES:
        return f"{size} processes"
    if 3 * tokens * ids.shape[1] * x.shape[1] + (10 << 20) > WINDOW:
        return f"HCCL_BUFFSIZE is too small for {tokens} tokens"
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= experts:
        return f"expert ids lie in 0..{experts}"
    return ""


@kernel
def dispatch_ffn_combine(
    x: Tensor,
    weight1: list[Tensor],
    weight2: list[Tensor],
    expert_idx: Tensor,
    scale1: list[Tensor],
    scale2: list[Tensor],
    bias1: list[Tensor],
    bias2: list[Tensor],
    probs: Tensor,
    group: str,
    max_output_size: int,
    out: Tensor,
    expert_token_nums: Tensor,
    x_active_mask: Tensor | None,
    swiglu_limit: float,
) -> tuple[Tensor, Tensor]:
    """out[t] = sum of probs[t, k] times the row of expert_idx[t, k], in float32; weights int8 [experts, k, n] and
    scales int64 [experts, n], in lists of one. Tokens that the mask leaves out have no defined result."""
    if len(weight1) != 1 or weight1[0].dtype != torch.int8 or scale1[0].dtype != torch.int64 or bias1 or bias2:
        raise RuntimeError("int8 weights of all experts in one tensor, int64 scales and no bias are emulated")
    if probs.dtype != torch.float32 or expert_idx.dtype != torch.int32:
        raise RuntimeError(f"probs are float32 and expert_idx int32, not {probs.dtype} and {expert_idx.dtype}")
    (w1,), (w2,), (rank, size) = weight1, weight2, members(group)
    experts, local = size * len(w1), len(w1)
    ids = expert_idx if x_active_mask is None else expert_idx.where(x_active_mask[:, None], experts)
    words = _refused(len(x), size, ids, x, experts)
    sizes = gathered(group, size, torch.tensor([len(x), bool(words)]))
    if words or bool((sizes != sizes[0]).any()):
        raise RuntimeError(words or "other processes bring other numbers of tokens or were refused")
    codes, factors = int8_rows(x)
    codes, factors, ids = (gathered(group, size, each).flatten(0, 1) for each in (codes, factors, ids))
    back = torch.zeros(*ids.shape, x.shape[1])
    for expert in range(local):
        token, slot = (ids == rank * local + expert).nonzero(as_tuple=True)
        expert_token_nums.view(-1)[expert] = len(token)
        if not len(token):
            continue
        gate_up = _product(codes[token], w1[expert], scales(scale1[0][expert])) * factors[token, None]
        inner, scale = int8_rows(swiglu(gate_up, swiglu_limit))
        rows = _product(inner, w2[expert], scales(scale2[0][expert])) * scale[:, None]
        back[token, slot] = rows.to(x.dtype).float()
    received = int(expert_token_nums.sum())
    came = gathered(group, size, back).sum(0).view(size, *expert_idx.shape, -1)[rank]  # one process has each row
    if received > max_output_size:
        raise RuntimeError(f"{received} rows came, max_output_size is {max_output_size}: the rest would be lost")
    y = (came * probs[:, :, None]).sum(1)
    out.copy_(y if x_active_mask is None else y.where(x_active_mask[:, None], torch.nan))
    return out, expert_token_nums


@kernel
def grouped_matmul_swiglu_quant_v2(
    x: Tensor,
    weight: list[Tensor],
    weight_scale: list[Tensor],
    x_scale: Tensor,
    group_list: Tensor,
    smooth_scale: Tensor | None,
    weight_assist_matrix: list[Tensor] | None,
    bias: Tensor | None,
    dequant_mode: int,
    dequant_dtype: int,
    quant_mode: int,
    quant_dtype: int,
    transpose_weight: bool,
    group_list_type: int,
    tuning_config: list[int],
    swiglu_limit: float,
) -> tuple[Tensor, Tensor]:
    """Its int8 form (csrc/gmm/grouped_matmul_swiglu_quant_v2): x [m, k] times experts' weights [experts, k, n], the
    gate and int8 per row, all in float32 -> codes [m, n / 2] and scales [m]. Rows behind the groups stay undefined."""
    absent = all(each is None for each in (smooth_scale, weight_assist_matrix, bias))
    if (
        not absent
        or dequant_mode
        or quant_mode
        or transpose_weight
        or len(weight) != 1
        or weight[0].dtype != torch.int8
        or swiglu_limit < 0
    ):
        raise RuntimeError("int8 weights of all experts in one tensor, without smoothing and bias, are emulated")
    (w,), (factors,) = weight, weight_scale
    experts, features, outputs = w.shape
    if factors.dtype not in (torch.float32, torch.float16, torch.bfloat16) or factors.shape != (experts, outputs):
        raise RuntimeError(
            f"weight_scale is {factors.dtype} {list(factors.shape)}, wanted floats [{experts}, {outputs}]"
        )
    if x.dtype != torch.int8 or x.shape[1] != features or x_scale.dtype != torch.float32 or x_scale.dim() != 1:
        raise RuntimeError(f"x is {x.dtype} {list(x.shape)} with {x_scale.dtype} {list(x_scale.shape)}")
    if features % 16 or features >= MOST_FEATURES or outputs % 32 or outputs > MOST_OUTPUTS:
        raise RuntimeError(f"weights of {features} by {outputs}")
    if group_list.dtype != torch.int64 or len(group_list) > experts or group_list_type not in (0, 1):
        raise RuntimeError(f"{len(group_list)} groups of {group_list.dtype} and type {group_list_type}")
    ends = group_list.cumsum(0) if group_list_type else group_list
    return gated_int8(x, w, factors, x_scale, ends, swiglu_limit)
