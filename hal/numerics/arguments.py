"""Arguments of a call, copied to the host so that the judge may compute in float64, and what they hold exactly."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.dispatched import Dispatched
from hal.formats import PackedWeight, Quantized, prepare
from hal.layouts import layout

__all__ = ["dequantised", "exact", "host"]


def host(argument: Any) -> Any:
    """A copy on the host. What is no tensor and holds none is returned as it is."""
    if isinstance(argument, Tensor):
        return argument.detach().to("cpu", copy=True)
    if isinstance(argument, Batch):
        return Batch.build(argument.lengths, argument.starts, argument.slots.tolist())
    if is_dataclass(argument) and not isinstance(argument, type):
        tensors = {f.name: getattr(argument, f.name) for f in fields(argument) if f.init}
        return replace(argument, **{name: host(x) for name, x in tensors.items() if isinstance(x, Tensor)})
    return argument


def exact(argument: Any) -> Any:
    """The same argument in float64, quantised values dequantised: what is stored, without another rounding."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    if isinstance(argument, PackedWeight):
        return prepare(argument.dequantize(torch.float64), "float64")
    if isinstance(argument, KVCache):
        plain = layout("rows_f64", argument.layout.head_dim, argument.layout.block_size)
        copy = KVCache(plain, plain.allocate(argument.pages.shape[0], "cpu"), argument.block_table)
        rows = torch.arange(argument.pages.shape[0] * argument.layout.block_size)
        copy.write(argument.read(rows, torch.float64), rows)
        return copy
    if isinstance(argument, StateCache):
        return StateCache(argument.tensor.double())
    if isinstance(argument, Dispatched):
        rows, weights = dequantised(argument), argument.weights.double()
        return replace(argument, rows=rows, scales=None, activation="none", weights=weights, dtype=torch.float64)
    return argument


def dequantised(dispatched: Dispatched) -> Tensor:
    """The rows of `dispatched` as float64 values."""
    if dispatched.scales is None:
        return dispatched.rows.double()
    return Quantized(dispatched.rows, dispatched.scales, dispatched.activation).dequantize().double()
