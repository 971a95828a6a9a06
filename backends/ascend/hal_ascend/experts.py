"""`moe.experts` with two grouped products of torch_npu: int8 and int4 on A2 and A3, e4m3 by e4m3 or FP4 on the 950."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch_npu
from hal_plain import experts as plain
from hal_plain.experts import activated
from torch import Tensor

from hal.derived import derived
from hal_ascend.cube import int4
from hal_ascend.matmul import row_scales, weight_scales
from hal_ascend.quantization import BLOCKS, quantize_int8, quantize_mx

if TYPE_CHECKING:
    from hal.dispatched import Dispatched
    from hal.formats import PackedWeight

BY_ROWS, ONE_TENSOR, COUNTS = 0, 2, 1  # group_type, split_item, group_list_type of npu_grouped_matmul


def experts_int8(
    dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str
) -> Tensor:
    """`moe.experts` of `w8a8_int8` with rows in "int8_token".

    The first product leaves the operator as int32, because its own output would be rounded to the model's dtype before
    the gate.
    """

    if not _packed(dispatched):
        return plain.experts(dispatched, w13, w2, clamp=clamp, activation=activation)
    assert dispatched.scales is not None
    assert w13.scales is not None
    sums = grouped(dispatched.rows, w13.codes.transpose(1, 2), dispatched.counts, output_dtype=torch.int32)
    gate_up = sums * w13.scales.squeeze(-1)[expert_of_row(len(dispatched.rows), dispatched.counts)] * dispatched.scales
    inner, scales = torch_npu.npu_dynamic_quant(activated(gate_up, dispatched.weights, clamp, dispatched.dtype))
    words = {"scale": [channel_scales(w2)], "per_token_scale": [scales], "output_dtype": dispatched.dtype}
    return grouped(inner, w2.codes.transpose(1, 2), dispatched.counts, **words)


def experts_int4(
    dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str
) -> Tensor:
    """`moe.experts` of `w4a8_int_256` with rows in "int8_token"; gate and up leave the operator in float16."""
    if not _packed(dispatched):
        return plain.experts(dispatched, w13, w2, clamp=clamp, activation=activation)
    assert dispatched.scales is not None
    gate_up = _int4(dispatched.rows, dispatched.scales.squeeze(1), w13, dispatched, torch.float16).float()
    inner = activated(gate_up, dispatched.weights, clamp, dispatched.dtype)
    codes, scales = quantize_int8(inner, activation=activation)
    return _int4(codes, scales.squeeze(1), w2, dispatched, dispatched.dtype)


def _int4(codes: Tensor, scales: Tensor, weight: PackedWeight, dispatched: Dispatched, dtype: torch.dtype) -> Tensor:
    stored = int4(weight)
    words = {"bias": [stored.bias], "scale": [stored.scales], "per_token_scale": [scales], "output_dtype": dtype}
    return grouped(codes, stored.codes, dispatched.counts, **words)


def expert_of_row(count: int, counts: Tensor) -> Tensor:
    """int64 [count]; rows behind those of the last expert count as its own."""
    ends = counts.cumsum(0)
    rows = torch.arange(count, device=ends.device).unsqueeze(1)
    return (rows >= ends).sum(-1).clamp_max(len(ends) - 1)


def experts_mx(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts` of `mxfp8`, `fp8_block128` and `mxfp4` with rows in e4m3 blocks."""
    if not _packed(dispatched):
        return plain.experts(dispatched, w13, w2, clamp=clamp, activation=activation)
    assert dispatched.scales is not None
    gate_up = _mx(dispatched.rows, dispatched.scales, w13, dispatched, activation, torch.float32)
    inner = activated(gate_up, dispatched.weights, clamp, dispatched.dtype)
    return _mx(*quantize_mx(inner, activation=activation), w2, dispatched, activation, dispatched.dtype)


def _mx(
    codes: Tensor, scales: Tensor, weight: PackedWeight, dispatched: Dispatched, activation: str, dtype: torch.dtype
) -> Tensor:
    made = derived(weight, ("ascend", "mx scales"), lambda: weight_scales(weight).view(torch.float8_e8m0fnu))
    factors = made.transpose(1, 2)
    tokens = row_scales(scales, codes.shape[1], BLOCKS[activation]).view(torch.float8_e8m0fnu)
    if weight.scheme == "mxfp4":
        words = {"antiquant_scale": [factors], "weight_dtype": torch_npu.float4_e2m1fn_x2}
    else:
        words = {
            "scale": [factors],
            "scale_dtype": torch_npu.float8_e8m0fnu,
            "per_token_scale_dtype": torch_npu.float8_e8m0fnu,
        }
    return grouped(
        codes,
        _from_start(weight).transpose(1, 2),
        dispatched.counts,
        per_token_scale=[tokens],
        output_dtype=dtype,
        **words,
    )


def _from_start(weight: PackedWeight) -> Tensor:
    """The codes in a storage of their own: torch_npu gives CANN an offset in bytes where it counts 4-bit elements."""
    codes = weight.codes
    return derived(weight, ("ascend", "own storage"), codes.clone) if codes.storage_offset() else codes


def channel_scales(weight: PackedWeight) -> Tensor:
    """float32 [experts, outputs] of `w8a8_int8`."""
    return derived(weight, ("ascend", "channel scales"), lambda: weight.scales.flatten(1))  # type: ignore[union-attr]


def grouped(codes: Tensor, weight: Tensor, counts: Tensor, **words: object) -> Tensor:
    """Rows of every expert times its weight [experts, features, outputs]."""
    return torch_npu.npu_grouped_matmul(
        [codes],
        [weight],
        group_list=counts,
        split_item=ONE_TENSOR,
        group_type=BY_ROWS,
        group_list_type=COUNTS,
        **words,
    )[0]


def _packed(dispatched: Dispatched) -> bool:
    """There are rows, and none between those of two experts, as the grouped product wants."""
    return dispatched.starts is None and len(dispatched.rows) > 0
