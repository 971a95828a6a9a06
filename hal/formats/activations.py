"""Activation quantisers: blocks of a row to codes and scales, bit for bit as the published checkpoints expect.

| name | element, block | scale |
|---|---|---|
| `none` | values as they are | none |
| `e4m3_128` | e4m3, 128 | ue8m0 of `max(amax, 1e-4) / 448`: inputs of FP8 and FP4 weights |
| `e4m3_64` | e4m3, 64 | the same: channels of KV rows without RoPE |
| `e4m3_32` | e4m3, 32 | the same: DeepGEMM's recipe `(1, 1, 32)` |
| `e2m1_32` | e2m1, 32 | ue8m0 of `max(amax, 6 * 2^-126) / 6`: the indexer's queries and keys |
| `int8_token` | int8, whole row | float32 `max(amax, 1e-10) / 127`; codes -127..127 |

Sources: the official inference code of DeepSeek-V4 (`kernel.py`: `act_quant`, `fp4_act_quant`); for `int8_token`
torch_npu's `npu_dynamic_quant`. Inputs of any dtype are taken as float32. A block that holds an infinity or NaN reads
back as NaN throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hal.errors import UnknownName
from hal.formats.blocks import Blocks
from hal.indexing import take

__all__ = ["ACTIVATIONS", "Quantized", "quantize", "simulate"]

_CHUNK = 1 << 18  # values rounded at a time: what a core's cache holds of the intermediate results

_QUANTISERS = {
    "none": None,
    "e4m3_128": Blocks("e4m3", 128, floor=1e-4),
    "e4m3_64": Blocks("e4m3", 64, floor=1e-4),
    "e4m3_32": Blocks("e4m3", 32, floor=1e-4),
    "e2m1_32": Blocks("e2m1", 32),
    "int8_token": Blocks("int8", 0, power_of_two=False, floor=1e-10 * 127, scale_dtype=torch.float32),
}

ACTIVATIONS = tuple(_QUANTISERS)
"""Names of all activation quantisers."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """Activations after a quantiser.

    Attributes:
        codes: float8_e4m3fn or int8 [.., features]; uint8 [.., features / 2] for e2m1, low nibble first; the values
            themselves for "none".
        scales: float8_e8m0fnu [.., blocks]; float32 [.., 1] for "int8_token"; float32 [.., 0] for "none".
        name: the quantiser.
    """

    codes: Tensor
    scales: Tensor
    name: str

    def __getitem__(self, rows: Tensor) -> Quantized:
        """Some rows."""
        return Quantized(take(self.codes, rows), take(self.scales, rows), self.name)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values [.., features] that codes and scales stand for."""
        blocks = _quantiser(self.name)
        return self.codes.to(dtype) if blocks is None else blocks.dequantize(self.codes, self.scales, dtype)


def quantize(x: Tensor, name: str) -> Quantized:
    """Codes and scales of `x` [.., features] by the quantiser `name`.

    Raises:
        UnknownName: no such quantiser.
    """
    blocks = _quantiser(name)
    if blocks is None:
        return Quantized(x, x.new_empty(*x.shape[:-1], 0, dtype=torch.float32), name)
    return Quantized(*blocks.quantize(x.detach().to(torch.float32)), name)


def simulate(x: Tensor, name: str) -> Tensor:
    """`quantize(x, name).dequantize(x.dtype)` without the codes: shape and dtype of `x`.

    Gradients pass straight through, as in quantisation-aware training.

    Raises:
        UnknownName: no such quantiser.
    """
    blocks = _quantiser(name)
    if blocks is None:
        return x
    rounded: Tensor = _StraightThrough.apply(x, blocks) if x.requires_grad else _rounded(x, blocks)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Blocks) -> Tensor:
        return _rounded(x, blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _rounded(x: Tensor, blocks: Blocks) -> Tensor:
    """`x` on the quantiser's grid, some rows at a time."""
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, _CHUNK // max(1, x.shape[-1]))
    if x.device.type != "cpu" or len(rows) <= step:
        return blocks.round(x.to(torch.float32)).to(x.dtype)
    out = torch.empty_like(rows)
    for low in range(0, len(rows), step):
        out[low : low + step] = blocks.round(rows[low : low + step].to(torch.float32))
    return out.view(x.shape)


def _quantiser(name: str) -> Blocks | None:
    if name not in _QUANTISERS:
        raise UnknownName(
            f"no activation quantiser is called {name!r}",
            where="activation",
            fix=f"use one of {', '.join(ACTIVATIONS)}",
        )
    return _QUANTISERS[name]
