"""Quantised and grouped products (aclnnQuantMatmulV5, aclnnGroupedMatmulV4 and V5), accumulated in float32 or int32."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.abi import Argument
from hal_emulators.cann.calls import kernel
from hal_emulators.cann.cube import GROUP, int4_product

FLOAT, HALF, INT8, INT32, BYTES, BF16, INT64, UINT64, HIF8, E8M0 = 0, 1, 2, 3, 4, 27, 9, 10, 34, 37
MOST_FEATURES, MOST_GROUPED_FEATURES = 29576, 18432
SCALES = (FLOAT, BF16, INT64, UINT64, E8M0)


def _scaled(x: Tensor, scale: Argument | None, axis: int) -> Tensor:
    """`x` times ue8m0 scales of 32 along `axis`, given two by two: [.., n / 64, 2] with `axis` as the one before."""
    if scale is None:
        return x
    pairs = scale.values()  # [m, k/64, 2] of rows, [k/64, n, 2] of columns, with experts in front
    factors = pairs.flatten(-2) if axis == -1 else pairs.movedim(-1, -2).flatten(-3, -2)
    return x * factors.repeat_interleave(32, axis).narrow(axis, 0, x.shape[axis])


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [m, k] times weight [k, n]: exact for integers, float64 rounded once to float32 else."""
    return (x.double() @ weight.double()).to(torch.float32)


@kernel("TTTTTTTTTbbiT", "aclnnQuantMatmulV5")
def quant_matmul(
    x: Argument,
    weight: Argument,
    x_scale: Argument | None,
    scale: Argument,
    y_scale: Argument | None,
    x_offset: Argument | None,
    offset: Argument | None,
    y_offset: Argument | None,
    bias: Argument | None,
    x_turned: bool,
    turned: bool,
    groups: int,
    out: Argument,
) -> None:
    """x [m, k], weight [k, n]; float scales per token and channel, or ue8m0 for 32 elements along k, or int4."""
    if weight.type == INT32:
        _int4_checked(x, scale, x_scale, y_offset, out)
        if x.shape[1] >= MOST_FEATURES or groups != GROUP or turned or bias is not None:
            raise ValueError(f"int4 {weight} with groups of {groups} and bias {bias} is not taken")
        found = int4_product(x.values(), weight.values(), scale.values(), y_offset.values())  # type: ignore[union-attr]
        out.write((found * x_scale.values().view(-1, 1)).to(out.dtype))  # type: ignore[union-attr]
        return
    if scale.type not in SCALES or (x_scale is not None and x_scale.type not in (FLOAT, E8M0)):
        raise ValueError(f"scales of aclDataType {scale.type} are not taken")
    rows, columns = x.values().float(), weight.values().float()
    if scale.type == E8M0:
        if x_scale is None or x_scale.type != E8M0 or groups & 0xFFFF != 32:
            raise ValueError("mx products take ue8m0 scales on both sides and groups of 32")
        result = product(_scaled(rows, x_scale, -1), _scaled(columns, scale, -2))
    else:
        result = product(rows, columns) * scale.values().float()
        result = result if x_scale is None else result * x_scale.values().float().unsqueeze(-1)
    result = result if bias is None else result + bias.values().float()
    out.write(result)


def _int4_checked(x: Argument, scale: Argument, tokens: Argument | None, bias: Argument | None, out: Argument) -> None:
    given = [each and each.type for each in (x, scale, tokens, bias, out)]
    wanted = ((INT8,), (INT64, UINT64), (FLOAT,), (FLOAT,), (HALF, BF16))
    if any(kind not in kinds for kind, kinds in zip(given, wanted, strict=True)):
        raise ValueError(f"int4 products take and make aclDataTypes of {wanted}, not {given}")


@kernel("TTTTTTTiT", "aclnnWeightQuantBatchMatmulV2")
def weight_quant_matmul(
    x: Argument,
    weight: Argument,
    scale: Argument,
    offset: Argument | None,
    quant_scale: Argument | None,
    quant_offset: Argument | None,
    bias: Argument | None,
    group: int,
    out: Argument,
) -> None:
    """x [m, k] of half precision, weight [k, n] of 8-bit floats; scales of x's dtype per output, [1, n]."""
    if weight.type != HIF8:
        raise ValueError(f"weights of aclDataType {weight.type} are not emulated, HIFLOAT8 is")
    if scale.type != x.type or tuple(scale.shape) != (1, weight.shape[1]) or group:
        raise ValueError(f"scales {scale} for x {x}, wanted x's dtype, [1, n] and no groups")
    if any(other is not None for other in (offset, quant_scale, quant_offset, bias)):
        raise ValueError("offsets, quantised outputs and bias are not emulated")
    out.write(product(x.values().float(), weight.values()) * scale.values().float())


def _grouped(
    x: list[Argument],
    weight: list[Argument],
    scale: list[Argument] | None,
    antiquant: list[Argument] | None,
    per_token: list[Argument] | None,
    groups: Argument | None,
    split: int,
    kind: int,
    counted: int,
    out: list[Argument],
) -> None:
    if len(x) != 1 or len(weight) != 1 or len(out) != 1 or split not in (2, 3) or kind != 0 or groups is None:
        raise NotImplementedError("only groups of rows of one tensor are emulated")
    ends = groups.values().cumsum(0) if counted else groups.values()
    rows, experts = x[0].values().float(), weight[0].values().float()
    factor = (scale or antiquant or [None])[0]
    begin = 0
    if factor is not None and factor.type not in (FLOAT, BF16, BYTES, E8M0):
        raise ValueError(f"experts' scales of aclDataType {factor.type} are not taken")
    if int(ends[-1]) > len(rows):
        raise ValueError(f"the groups have {int(ends[-1])} rows, x has {len(rows)}")
    result = out[0].memory
    for expert, end in enumerate(ends.tolist()):
        at, here = slice(begin, end), experts[expert]
        left = rows[at]
        if factor is not None and factor.type in (E8M0, BYTES):
            pairs = torch.exp2(factor.memory.view(torch.uint8)[expert].float() - 127)
            factors = pairs.movedim(-1, -2).flatten(-3, -2).repeat_interleave(32, 0)[: here.shape[0]]
            token = per_token[0].values()[at].flatten(-2).repeat_interleave(32, -1)[:, : rows.shape[1]]  # type: ignore[index]
            found = product(left * token, here * factors)
        else:
            found = product(left, here)
            found = found if factor is None else found * factor.values()[expert].float()
            found = found if per_token is None else found * per_token[0].values()[at].float().unsqueeze(-1)
        result[at] = found.to(result.dtype)
        begin = end


def _grouped_int4(
    x: list[Argument],
    weight: list[Argument],
    bias: list[Argument] | None,
    scale: list[Argument] | None,
    per_token: list[Argument] | None,
    groups: Argument | None,
    split: int,
    kind: int,
    out: list[Argument],
) -> None:
    """Rows of experts times int4; the operator takes its groups for counts whatever is said."""
    if len(x) != 1 or len(weight) != 1 or split not in (2, 3) or kind != 0 or groups is None or not (bias and scale):
        raise ValueError("int4 takes groups of rows of one tensor, scales and 8 times the weights' sums as bias")
    _int4_checked(x[0], scale[0], (per_token or [None])[0], bias[0], out[0])  # type: ignore[list-item]
    if x[0].shape[1] > MOST_GROUPED_FEATURES:
        raise ValueError(f"{x[0].shape[1]} features are more than {MOST_GROUPED_FEATURES}")
    ends = groups.values().cumsum(0)
    if int(ends[-1]) > x[0].shape[0]:
        raise ValueError(f"the groups have {int(ends[-1])} rows, x has {x[0].shape[0]}")
    rows, result, begin = x[0].values(), out[0].memory, 0
    for expert, end in enumerate(ends.tolist()):
        at = slice(begin, end)
        sides = (each[0].values()[expert] for each in (weight, scale, bias))
        result[at] = (int4_product(rows[at], *sides) * per_token[0].values()[at, None]).to(result.dtype)  # type: ignore[index]
        begin = end


@kernel("LLLLLLLLTLLLiiiiALLL", "aclnnGroupedMatmulV5")
def grouped_matmul_v5(*given: object) -> None:
    _from(given, out=17)


@kernel("LLLLLLLLTLLLiiiiLLL", "aclnnGroupedMatmulV4")
def grouped_matmul_v4(*given: object) -> None:
    _from(given, out=16)


def _from(given: tuple[object, ...], out: int) -> None:
    """x, weight, bias, scale, offset, antiquant scale and offset, per token scale, groups, three of activations."""
    x, weight, bias, scale, offset, antiquant, antiquant_offset, per_token, groups = given[:9]
    split, kind, counted, activation = given[12:16]
    int4 = weight[0].type == INT32  # type: ignore[index]
    if (bias and not int4) or offset or antiquant_offset or activation or any(given[9:12]):
        raise NotImplementedError("bias, offsets and activations are not emulated")
    if int4:
        _grouped_int4(x, weight, bias, scale, per_token, groups, split, kind, given[out])  # type: ignore[arg-type]
        return
    _grouped(x, weight, scale, antiquant, per_token, groups, split, kind, counted, given[out])  # type: ignore[arg-type]
