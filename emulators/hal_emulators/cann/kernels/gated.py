"""A grouped product with its gate behind it (aclnnGroupedMatmulSwigluQuantWeightNzV2), in int8."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hal_emulators.cann.abi import NZ, Argument
from hal_emulators.cann.calls import kernel
from hal_emulators.cann.kernels.quantization import int8_rows

MOST_FEATURES, MOST_OUTPUTS = 65536, 10240
FLOAT, HALF, INT8, INT64, BF16 = 0, 1, 2, 9, 27


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """[rows, 2 n] -> [rows, n]; a limit of 0 is none."""
    gate, up = gate_up.chunk(2, -1)
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


def gated_int8(
    x: Tensor, weight: Tensor, factors: Tensor, tokens: Tensor, ends: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    """x int8 [m, k] with scales [m] times weight int8 [experts, k, n] with scales [experts, n], the gate and int8 per
    row, all in float32 -> codes [m, n / 2] and scales [m]. Rows behind the groups stay undefined."""
    codes, scales = x.new_full((len(x), weight.shape[2] // 2), 127), tokens.new_full((len(x),), torch.nan)
    begin = 0
    for expert, end in enumerate(ends.tolist()):
        at = slice(begin, end)
        sums = (x[at].double() @ weight[expert].double()).float()
        codes[at], scales[at] = int8_rows(swiglu(sums * factors[expert].float() * tokens[at, None], limit))
        begin = end
    return codes, scales


@kernel("TLLLTTTTiiiiATT", "aclnnGroupedMatmulSwigluQuantWeightNzV2")
def grouped_matmul_swiglu_quant(
    x: Argument,
    weight: list[Argument],
    scale: list[Argument],
    assist: list[Argument] | None,
    bias: Argument | None,
    tokens: Argument,
    smooth: Argument | None,
    groups: Argument,
    dequant_mode: int,
    dequant_dtype: int,
    quant_mode: int,
    counted: int,
    tuning: list[int] | None,
    out: Argument,
    out_scale: Argument,
) -> None:
    """Without a limit for the gate."""
    if assist or bias is not None or smooth is not None or dequant_mode or quant_mode or len(weight) != 1:
        raise NotImplementedError("int8 weights of all experts in one tensor, without smoothing and bias, are emulated")
    experts, features, outputs = weight[0].shape
    if (x.type, weight[0].type, weight[0].format, tokens.type, groups.type) != (INT8, INT8, NZ, FLOAT, INT64):
        raise ValueError(f"x {x}, weight {weight[0]}, rows' scales {tokens} and groups {groups} are not taken")
    if scale[0].type not in (FLOAT, HALF, BF16) or tuple(scale[0].shape) != (experts, outputs):
        raise ValueError(f"weights' scales {scale[0]}, wanted [{experts}, {outputs}]")
    if x.shape[1] != features or features >= MOST_FEATURES or outputs > MOST_OUTPUTS or groups.shape[0] > experts:
        raise ValueError(f"x {x} and {groups.shape[0]} groups for weights of {features} by {outputs}")
    ends = groups.values().cumsum(0) if counted else groups.values()
    codes, scales = gated_int8(x.values(), weight[0].values(), scale[0].values(), tokens.values(), ends, 0.0)
    out.write(codes)
    out_scale.write(scales)
