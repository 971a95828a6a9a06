"""The mixture of experts by torch_mlu_ops. Rows inside an expert come in any order, and nothing relies on one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hal_plain.experts import exchanged, returned
from torch import Tensor

from hal.derived import derived
from hal.dispatched import Dispatched
from hal.formats import prepare, quantize, simulate
from hal.indexing import take
from hal_mlu import tmo
from hal_mlu.matmul import LEAST_SCALE, scales_of

if TYPE_CHECKING:
    from hal.distributed import Group
    from hal.formats import PackedWeight

DEQUANTISED = 1 << 29  # weights dequantised at a time (1 GiB of bfloat16)


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
    logits = logits.contiguous()
    if not len(logits):
        return logits.new_empty(0, top_k), logits.new_empty(0, top_k, dtype=torch.int32)
    if scoring == "sigmoid":
        weights, ids = tmo.operator("moe_sigmoid_topk")(
            input=logits, topk=top_k, normalize=True, route_scale=scale, score_bias=bias
        )
    else:
        hashed = table is not None and token_ids is not None
        weights, ids = tmo.operator("moe_softplus_topk")(
            input=logits,
            topk=top_k,
            input_ids=token_ids if hashed else None,
            tid2eid=table if hashed else None,
            bias=None if hashed else bias,
            route_scale=scale,
        )
    return weights.nan_to_num(0.0), ids  # scores that all vanish are divided by their sum


def dispatch(
    x: Tensor, expert_ids: Tensor, weights: Tensor, group: Group | None, *, experts: int, activation: str
) -> Dispatched:
    """`moe.dispatch`: x[tokens, hidden] -> rows grouped by expert, on the process that has it.

    Unused slots go to one expert more than there are: behind all others, where nobody reads them.
    """
    ids = expert_ids.where(expert_ids >= 0, experts).int().contiguous()
    if not ids.numel():
        return _empty(x, expert_ids, weights, experts, activation, group)
    source, place, counts, _ = tmo.operator("moe_gen_idx")(expert_id=ids, expert_num=experts + 1)
    if activation == "none":
        rows, scales = tmo.operator("moe_expand_input")(input=x.contiguous(), gather_idx=source), None
    elif activation == "int8_token":
        codes, scale = tmo.int8_rows(x.contiguous())
        rows = tmo.operator("moe_expand_input")(input=codes, gather_idx=source)
        scales = scale.where(scale > 0, LEAST_SCALE)[source].unsqueeze(1)
    else:
        quantized = quantize(x, activation)[source]
        rows, scales = quantized.codes, quantized.scales
    order = torch.empty_like(place)
    order[place.long()] = torch.arange(len(place), dtype=place.dtype, device=place.device)
    index = place.view(ids.shape).where(expert_ids >= 0, -1).long()
    factors = weights.flatten()[order]
    return exchanged(rows, scales, activation, factors, counts[:experts].long(), index, x.dtype, group)


def _empty(
    x: Tensor, expert_ids: Tensor, weights: Tensor, experts: int, activation: str, group: Group | None
) -> Dispatched:
    quantized = quantize(x[:0], activation)
    scales = None if activation == "none" else quantized.scales
    counts = torch.zeros(experts, dtype=torch.int64, device=x.device)
    factors = weights.flatten()[:0]
    return exchanged(quantized.codes, scales, activation, factors, counts, expert_ids.long(), x.dtype, group)


def experts_int8(
    dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str
) -> Tensor:
    """`moe.experts` with int8 rows and int8 or int4 weights; the vendor rounds gate and up to half precision."""
    packed, counts = _packed(dispatched)
    if not len(packed.rows):
        return packed.rows.new_empty(0, w2.shape[-2], dtype=dispatched.dtype)
    assert packed.scales is not None
    gate_up = _int8_product(packed.rows, packed.scales.squeeze(1), w13, counts, dispatched.dtype)
    codes, scales = tmo.int8_rows(_weighted(gate_up, packed, clamp))
    return _spread(_int8_product(codes, scales, w2, counts, dispatched.dtype), dispatched)


def _weighted(gate_up: Tensor, packed: Dispatched, clamp: float) -> Tensor:
    """silu(gate) * up * weight, clamped, in float32 and rounded once to the model's dtype."""
    return (tmo.gated_silu(gate_up.float(), clamp) * packed.weights.unsqueeze(1)).to(packed.dtype)


def experts_exact(
    dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str
) -> Tensor:
    """`moe.experts` in bfloat16 products of values that it holds exactly: the arithmetic of FP8 and FP4 weights."""
    packed, counts = _packed(dispatched)
    values = packed.values().to(dispatched.dtype)
    if not len(values):
        return values.new_empty(0, w2.shape[-2])
    inner = _weighted(_product(values, w13, counts, torch.float32), packed, clamp)
    return _spread(_product(simulate(inner, activation), w2, counts, dispatched.dtype), dispatched)


def experts_fp8(
    dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str
) -> Tensor:
    """`moe.experts` in FP8: blocks of 128, or FP4 and FP8 weights in microscaling; gate and up are half precision."""
    packed, counts = _packed(dispatched)
    if not len(packed.rows):
        return packed.rows.new_empty(0, w2.shape[-2], dtype=dispatched.dtype)
    assert packed.scales is not None
    gate_up = _fp8_product(packed.rows, packed.scales, w13, counts, dispatched.dtype)
    inner = quantize(_weighted(gate_up, packed, clamp), activation)
    return _spread(_fp8_product(inner.codes, inner.scales, w2, counts, dispatched.dtype), dispatched)


def _fp8_product(codes: Tensor, scales: Tensor, weight: PackedWeight, counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows with a scale per 128 channels times experts' weights. The operator wants scales with channels first.

    Microscaling has a scale per 32 channels, so each of a row's is said four times. e2m1 is part of e4m3: FP4 weights
    become FP8 once, without a loss.
    """
    if weight.scheme == "fp8_block128":
        row_scales = scales.float().mT.contiguous()
        weight_scales = derived(weight, ("mlu", "scales"), lambda: scales_of(weight).float())
    else:
        weight = derived(weight, ("mlu", "mxfp8"), lambda: prepare(weight, "mxfp8"))
        often = scales.view(torch.uint8).repeat_interleave(4, dim=1)[:, : weight.shape[-1] // 32]
        row_scales = _turned(often)
        weight_scales = derived(weight, ("mlu", "scales"), lambda: _turned(scales_of(weight)))
    return tmo.operator("smooth_quant_group_gemm")(
        a=codes.contiguous(),
        b=weight.codes,
        m_list=counts,
        expand_idx=None,
        c=None,
        alpha=None,
        beta=None,
        a_scale=row_scales,
        b_scale=weight_scales,
        dtype=dtype,
        max_m=len(codes),
    )


def _turned(scales: Tensor) -> Tensor:
    """e8m0 scales with their last two dimensions exchanged."""
    return scales.view(torch.uint8).mT.contiguous().view(torch.float8_e8m0fnu)


def _int8_product(codes: Tensor, scales: Tensor, weight: PackedWeight, counts: Tensor, dtype: torch.dtype) -> Tensor:
    assert weight.scales is not None
    four = weight.scheme == "w4a8_int"
    columns = weight.scales.permute(2, 0, 1).contiguous() if four else weight.scales.squeeze(-1)
    return tmo.operator("smooth_quant_group_gemm")(
        a=codes.contiguous(),
        b=weight.codes.view(torch.int8),
        m_list=counts,
        expand_idx=None,
        c=None,
        alpha=None,
        beta=None,
        a_scale=scales.contiguous(),
        b_scale=columns.contiguous(),
        dtype=dtype,
        max_m=len(codes),
        quant_flag=[4] * (columns.shape[0] * columns.shape[1]) if four else None,
    )


def _product(values: Tensor, weight: PackedWeight, counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of each expert times its weight, dequantised for as many experts at a time as `DEQUANTISED` allows."""
    experts, outputs, features = weight.shape
    step = max(1, DEQUANTISED // (outputs * features))
    if weight.codes.dtype == values.dtype or step >= experts:
        return _grouped(values, _plain(weight, values.dtype), counts, dtype)
    made = values.new_empty(len(values), outputs, dtype=dtype)
    ends = [0, *counts.cumsum(0).tolist()]
    for low in range(0, experts, step):
        high = min(low + step, experts)
        rows = slice(ends[low], ends[high])
        some = torch.stack([_plain(weight[expert], values.dtype) for expert in range(low, high)])
        made[rows] = _grouped(values[rows], some, counts[low:high], dtype)
    return made


def _plain(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    return weight.codes if weight.codes.dtype == dtype else weight.dequantize(dtype)


def _grouped(values: Tensor, weights: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    return tmo.operator("group_gemm")(
        a=values.contiguous(),
        b=weights.contiguous(),
        group_list=counts,
        expand_idx=None,
        c=None,
        alpha=None,
        beta=None,
        max_in_group_list=len(values),
        output_dtype=dtype,
    )


def _packed(dispatched: Dispatched) -> tuple[Dispatched, Tensor]:
    """Rows without padding between experts, as grouped products want them; and int32 counts."""
    counts = dispatched.counts.int()
    if dispatched.starts is None:
        return dispatched, counts
    at = _segments(dispatched)
    scales = None if dispatched.scales is None else take(dispatched.scales, at)
    rows, weights = take(dispatched.rows, at), dispatched.weights[at]
    words = (dispatched.counts, dispatched.index, dispatched.tokens, dispatched.top_k, dispatched.dtype)
    return Dispatched(rows, scales, dispatched.activation, weights, *words), counts


def _spread(rows: Tensor, dispatched: Dispatched) -> Tensor:
    """The inverse of `_packed`."""
    if dispatched.starts is None:
        return rows
    made = rows.new_empty(len(dispatched.rows), rows.shape[1])
    made[_segments(dispatched)] = rows
    return made


def _segments(dispatched: Dispatched) -> Tensor:
    """int64: where the rows of the experts are, one expert after the other."""
    counts, starts = dispatched.counts, dispatched.offsets()
    first = (starts - (counts.cumsum(0) - counts)).repeat_interleave(counts)
    return first + torch.arange(len(first), device=first.device)


def combine(rows: Tensor, dispatched: Dispatched, residual: Tensor | None) -> Tensor:
    """`moe.combine`: a token's rows summed, then `residual`; routing weights are in the rows already.

    Unused slots point behind the rows of the one group there is, so they add nothing.
    """
    rows = returned(rows, dispatched).contiguous()
    if not dispatched.tokens:
        return rows.new_empty(0, rows.shape[1])
    count = len(rows)
    index = dispatched.index
    return tmo.operator("moe_combine_result")(
        input=rows,
        reduce_weight=torch.ones(index.shape, device=rows.device),
        gather_ids=index.where(index >= 0, count).flatten().int(),
        residual=None if residual is None else residual.to(rows.dtype).contiguous(),
        cusum_token_count=torch.tensor([0, count], dtype=torch.int32).to(rows.device),
        start_expert_id=0,
        expert_size=1,
    )
