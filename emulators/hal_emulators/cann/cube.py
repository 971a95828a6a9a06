"""What a matrix unit does to integers: scales in the low half of 64 bits, 4-bit halves of 8-bit rows.

Sources: ops-transformer, gmm/grouped_matmul/op_kernel/grouped_matmul_antiquant_a8w4_msd.h; ops-nn,
matmul/quant_batch_matmul_v4/op_kernel/quant_batch_matmul_v4_msd.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GROUP", "int4_product", "scales"]

KEPT = 0xFFFFE000  # bits of a float32 scale that the output stage reads
GROUP = 256  # features that share a scale


def scales(packed: Tensor) -> Tensor:
    """float32 of scales in the low half of int64 or uint64."""
    return (packed.view(torch.int64) & KEPT).to(torch.uint32).view(torch.float32)


def int4_product(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """float32 [m, n] of int8 rows [m, k], weight int32 [k, n / 8] of eight int4, scale int64 [k / 256, n] and bias [n].

    A row is 16 high + low + 8, its halves are multiplied by themselves: exact in a group, which is scaled to float16
    and added in float16. The bias has to make up for the 8.

    Raises:
        ValueError: sizes that the operators do not take.
    """
    features, outputs = len(weight), 8 * weight.shape[1]
    if rows.shape[1] != features or features % GROUP or tuple(scale.shape) != (features // GROUP, outputs):
        raise ValueError(
            f"rows {list(rows.shape)}, int4 [{features}, {outputs}], scales {list(scale.shape)} of {GROUP}"
        )
    if tuple(bias.shape) != (outputs,):
        raise ValueError(f"8 times the weights' sums are {list(bias.shape)}, wanted [{outputs}]")
    codes = (weight.unsqueeze(-1) >> torch.arange(0, 32, 4) & 15).flatten(1)
    codes = (codes - 16 * (codes > 7)).double().unflatten(0, (-1, GROUP))
    factors, groups = scales(scale).double(), rows.to(torch.int32).unflatten(1, (-1, GROUP))
    high, low = (
        sum_in_half([half[:, group].double() @ codes[group] * factors[group] for group in range(len(codes))])
        for half in (groups >> 4, (groups & 15) - 8)
    )
    return 16 * high + low + bias


def sum_in_half(terms: list[Tensor]) -> Tensor:
    """Their sum in float16, one after the other, as float32."""
    total = torch.zeros_like(terms[0], dtype=torch.float16)
    for term in terms:
        total = total + term.half()
    return total.float()
