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

__all__ = ["blank", "dequantised", "exact", "host"]


def host(argument: Any) -> Any:
    """The argument on the host: a copy of a tensor; caches and weights that are there already as they are."""
    if isinstance(argument, Tensor):
        return argument.detach().to("cpu", copy=True)
    if isinstance(argument, Batch):
        return Batch.build(argument.lengths, argument.starts, argument.slots.tolist())
    if is_dataclass(argument) and not isinstance(argument, type):
        tensors = {f.name: getattr(argument, f.name) for f in fields(argument) if f.init}
        return replace(argument, **{name: x.detach().to("cpu") for name, x in tensors.items() if isinstance(x, Tensor)})
    return argument


def exact(argument: Any) -> Any:
    """The same argument in float64, quantised values dequantised: what is stored, without another rounding."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    if isinstance(argument, PackedWeight):
        return prepare(argument.dequantize(torch.float64), "float64")
    if isinstance(argument, StateCache):
        return StateCache(argument.tensor.double())
    if isinstance(argument, Dispatched):
        rows, weights = dequantised(argument), argument.weights.double()
        return replace(argument, rows=rows, scales=None, activation="none", weights=weights, dtype=torch.float64)
    return argument


def blank(cache: KVCache, physical: Tensor) -> tuple[KVCache, Tensor]:
    """A float64 cache that has only the pages of the physical rows [n], to write to, and where those rows are in it."""
    size, used = cache.layout.block_size, physical[physical >= 0]
    pages = torch.div(used, size, rounding_mode="floor").unique()
    moved = torch.full((cache.pages.shape[0] + 1,), -1, dtype=torch.int64)  # the last one answers for -1
    moved[pages] = torch.arange(len(pages))
    plain = layout("rows_f64", cache.layout.head_dim, size, cache.layout.rope_dim)
    table = moved[cache.block_table.long()].to(torch.int32)
    rows = moved[torch.div(physical, size, rounding_mode="floor")] * size + physical % size
    return KVCache(plain, plain.allocate(len(pages)), table), rows.where(physical >= 0, -1)


def dequantised(dispatched: Dispatched) -> Tensor:
    """The rows of `dispatched` as float64 values, on the host: there are chips that compute float64 in float32."""
    rows = dispatched.rows.to("cpu")
    if dispatched.scales is None:
        return rows.double()
    return Quantized(rows, dispatched.scales.to("cpu"), dispatched.activation).dequantize(torch.float64)
