"""Quantisers: `scaled_quantize`, `moe_quantize`. Scales dequantise: code times scale is the value."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import FLOATS, INT32, Checks, operator

F32 = (torch.float32,)


def _per_row(value: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and float32 scales [rows]; a row of zeros has scale 0."""
    scale = value.abs().amax(-1) / 127 if value.shape[-1] else value.new_zeros(value.shape[:-1])
    codes = torch.where(scale[..., None] > 0, value / scale[..., None], 0.0)
    return codes.round().clip(-127, 127).to(torch.int8), scale


@operator
def scaled_quantize(
    x: Tensor,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    scale_ub: Tensor | None = None,
    quant_type: torch.dtype = torch.int8,
    quant_mode: str = "dynamic_per_token",
    act_mode: str = "none",
    active_coef: float = 1.0,
    is_gated: bool = False,
    quant_bit_size: int = 8,
    scale_type: torch.dtype = torch.float32,
    need_output_scale_trans: bool = False,
    output_reduced: Tensor | None = None,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    check = Checks("scaled_quantize")
    check("x", x, FLOATS, "rows channels")
    check("scale", scale, F32, "channels")
    check.absent(zero=zero, scale_ub=scale_ub, output_reduced=output_reduced)
    check.that(quant_mode == "dynamic_per_token", f"quant_mode {quant_mode!r} is not emulated")
    check.that(quant_type == torch.int8 and quant_bit_size == 8, "only int8 is emulated: the cards have no FP8")
    check.that(act_mode == "none", f"act_mode {act_mode!r} is not emulated")
    return _per_row(x.float() if scale is None else x.float() * scale)


@operator
def moe_quantize(
    x: Tensor,
    smooth: Tensor,
    zero: Tensor | None = None,
    token_count: Tensor | None = None,
    gather_index: Tensor | None = None,
    gather_index_start_position: Tensor | None = None,
    output: Tensor | None = None,
    output_scale: Tensor | None = None,
    dynamic_quant: bool = True,
    act_mode: str = "none",
    active_coef: float = 1.0,
    is_gated: bool = False,
    quant_type: torch.dtype = torch.int8,
    quant_bit_size: int = 8,
    scale_type: torch.dtype = torch.float32,
    need_output_scale_trans: bool = False,
    output_reduced: Tensor | None = None,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Activation, rows gathered, times smooth of the row's expert, one scale per row."""
    check = Checks("moe_quantize")
    check("x", x, FLOATS, "tokens channels")
    check("token_count", token_count, INT32, "experts")
    check("gather_index", gather_index, INT32, "rows")
    check("gather_index_start_position", gather_index_start_position, INT32, "1")
    check.absent(zero=zero, output_reduced=output_reduced)
    check.that(dynamic_quant and quant_type == torch.int8, "only dynamic int8 is emulated")
    check.that(act_mode in ("none", "silu"), f"act_mode {act_mode!r} is not emulated")
    value = x.float()
    if act_mode == "silu":
        gate, up = value.chunk(2, dim=-1) if is_gated else (value, torch.ones(()))
        value = gate / (1 + torch.exp(-gate)) * up
    check.sizes["width"] = value.shape[1]
    check("smooth", smooth, F32, "experts width")
    rows = len(value) if gather_index is None else len(gather_index)
    begin = 0 if gather_index_start_position is None else int(gather_index_start_position)
    counts = torch.tensor([rows]) if token_count is None else token_count.long()
    used = int(counts.sum())
    check.that(begin + used <= rows, f"{used} rows from {begin} on, but there are {rows}")
    if gather_index is not None:
        check.indices("gather_index", gather_index, 0, len(x))
        value = value[gather_index[begin : begin + used].long()]
    codes, scales = _per_row(value[:used] * smooth.repeat_interleave(counts, 0))
    made = torch.full((rows, value.shape[1]), -1, dtype=torch.int8) if output is None else output
    made_scales = torch.full((rows,), torch.nan) if output_scale is None else output_scale
    made[:used], made_scales[:used] = codes, scales
    return made, made_scales
