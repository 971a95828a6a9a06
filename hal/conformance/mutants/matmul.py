"""Planted bugs in quantised products, in what kernels declare, and in how they end."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.conformance.mutants.planted import HOST, honest
from hal.formats import PackedWeight, simulate

matmul = honest("hal.reference.matmul:matmul")
quantize = honest("hal.reference.matmul:quantize")

_calls = count()


def split_sum_in_bfloat16(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    return _split(x, weight, activation, torch.bfloat16)


def order_of_parts_changes(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    return _split(x, weight, activation, torch.float32, backwards=bool(next(_calls) % 2))


def split_where_tokens_are_few(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    y: Tensor = _split(x, weight, activation, torch.float32) if len(x) < 5 else matmul(x, weight, activation=activation)
    return y


def _split(x: Tensor, weight: PackedWeight, activation: str, partial: torch.dtype, backwards: bool = False) -> Tensor:
    """The product in four parts of the features, added up in `partial`."""
    a, b = simulate(x.float(), activation), weight.dequantize()
    parts = [F.linear(left, right).to(partial) for left, right in zip(a.chunk(4, 1), b.chunk(4, 1), strict=True)]
    total = torch.zeros_like(parts[0])
    for part in reversed(parts) if backwards else parts:
        total = total + part
    return total.to(x.dtype)


def truncating_cast(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    y: Tensor = matmul(x.float(), weight, activation=activation)
    if x.dtype != torch.bfloat16:
        return y.to(x.dtype)
    return (y.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)


def transposed_scales(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    if weight.scheme == "fp8_block128" and weight.scales is not None:
        bits = weight.scales.view(torch.uint8)
        turned = bits.reshape(bits.shape[::-1]).mT.contiguous().view(weight.scales.dtype)
        weight = replace(weight, scales=turned)
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def swapped_nibbles(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    if weight.scheme == "mxfp4":
        weight = replace(weight, codes=(weight.codes >> 4) | (weight.codes << 4))
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def assumed_contiguous(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    packed = x.as_strided(x.shape, (x.shape[1], 1), x.storage_offset())
    y: Tensor = matmul(packed, weight, activation=activation)
    return y


def same_kernel_twice(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    from hal.reference.matmul import matmul as reference

    return reference(x, weight, activation=activation)


def ran_on_the_host(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    HOST.append("aten::isin.Tensor_Tensor_out")
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def scheme_not_implemented(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    if weight.scheme == "mxfp8":
        raise NotImplementedError("no kernel for this scheme on this architecture")
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def outputs_in_tiles_of_128(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """Right only where outputs fill whole tiles."""
    y: Tensor = matmul(x, weight, activation=activation)
    whole = y.shape[1] // 128 * 128
    return torch.cat([y[:, :whole], torch.zeros_like(y[:, whole:])], 1)


def works_beyond_its_list(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def no_tokens_refused(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    if not len(x):
        raise RuntimeError("Failed to launch kernel: invalid argument")
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def segmentation_fault(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    if weight.scheme == "mxfp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def mask_read_in_a_graph(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    y: Tensor = matmul(x, weight, activation=activation)
    zero = (x == 0).all(1)
    y[zero] = torch.zeros_like(y[zero])
    return y


def process_ended(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    if weight.scheme == "w4a8_int":
        os._exit(1)
    y: Tensor = matmul(x, weight, activation=activation)
    return y


def scale_rounded_down(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """Scales are rounded down to a power of two, and what exceeds the largest code is clipped."""
    codes, scales = quantize(x, activation=activation)
    if not activation.startswith("e4m3"):
        return codes, scales
    smaller = (scales.view(torch.uint8) - 1).view(scales.dtype)
    each = smaller.float().repeat_interleave(int(activation.split("_")[1]), 1)[:, : x.shape[1]]
    return (x.float() / each).clamp(-448, 448).to(codes.dtype), smaller
