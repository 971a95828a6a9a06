"""Rows of paged caches in JAX: which bytes a row has, decoded, and encoded for the caller to write.

Pages are addressed by the fields that `hal.layouts` publishes. A cache is mutated in torch, where its memory belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import Array, lax
from torch import Tensor

from hal.cache import KVCache
from hal_jax import numbers
from hal_jax.exchange import to_jax, to_torch

__all__ = ["Rows", "gather", "opened", "physical", "write"]

INDEX = {"index_mxfp4_68": "e2m1_32", "index_fp8_132": "e4m3_128"}


@dataclass(frozen=True)
class Rows:
    """What of a layout is known when a kernel is compiled.

    Attributes:
        fields: name, offset, stride and bytes of each part of a row in a page of bytes; none for plain rows.
        split: channels before those with RoPE.
    """

    name: str
    block: int
    dim: int
    split: int
    fields: tuple[tuple[str, int, int, int], ...]


jax.tree_util.register_static(Rows)


def opened(cache: KVCache) -> tuple[Rows, Array, Array]:
    """A cache's layout, pages and block table."""
    layout = cache.layout
    plain = cache.pages.dtype != torch.uint8
    fields = () if plain else tuple((one.name, one.offset, one.stride, one.bytes) for one in layout.sizes.fields)
    rows = Rows(layout.name, layout.block_size, layout.head_dim, layout.head_dim - layout.rope_dim, fields)
    return rows, to_jax(cache.pages), to_jax(cache.block_table)


def physical(rows: Rows, table: Array, slot: Array, row: Array) -> Array:
    """Physical rows of rows of a request; -1 where a row is negative or not mapped."""
    block = jnp.maximum(row, 0) // rows.block
    inside = (row >= 0) & (block < table.shape[1])
    page = table[slot, jnp.where(inside, block, 0)]
    return jnp.where(inside & (page >= 0), page * rows.block + row % rows.block, -1)


def gather(rows: Rows, pages: Array, at: Array) -> Array:
    """float32 `[.., dim]`: rows at physical rows `at`; zeros where it is -1."""
    found = _decoded(rows, pages, jnp.maximum(at, 0)) if pages.shape[0] else jnp.zeros((*at.shape, rows.dim))
    return jnp.where((at >= 0)[..., None], found, 0.0)


def _decoded(rows: Rows, pages: Array, at: Array) -> Array:
    page, row = at // rows.block, at % rows.block
    if not rows.fields:
        return pages[page, row].astype(jnp.float32)
    part = {
        name: pages[page[..., None], offset + row[..., None] * stride + jnp.arange(count)]
        for name, offset, stride, count in rows.fields
    }
    if rows.name in INDEX:
        flat = part["codes"].reshape(-1, part["codes"].shape[-1])
        if rows.name == "index_fp8_132":
            scale = lax.bitcast_convert_type(part["scales"].reshape(-1, 1, 4), jnp.float32)
            return (numbers.decode_e4m3(flat) * scale).reshape(*at.shape, rows.dim)
        scales = part["scales"].reshape(-1, part["scales"].shape[-1])
        return numbers.dequantize(flat, scales, "e2m1_32").reshape(*at.shape, rows.dim)
    codes = part["codes"].reshape(-1, rows.split)
    still = numbers.dequantize(codes, part["scales"].reshape(codes.shape[0], -1), "e4m3_64")
    pairs = part["rope"].reshape(codes.shape[0], -1, 2)
    turning = lax.bitcast_convert_type(pairs, jnp.bfloat16).astype(jnp.float32)
    return jnp.concatenate([still, turning], -1).reshape(*at.shape, rows.dim)


def encoded(rows: Rows, values: Array) -> dict[str, Array]:
    """The fields of float32 `values[n, dim]`, as the layout stores them."""
    if rows.name in INDEX:
        codes, scales = numbers.quantize(values, INDEX[rows.name])
        if rows.name == "index_fp8_132":
            scales = lax.bitcast_convert_type(numbers.power(scales), jnp.uint8).reshape(values.shape[0], 4)
        return {"codes": codes, "scales": scales}
    still, turning = values[:, : rows.split], values[:, rows.split :]
    if rows.fields:
        codes, scales = numbers.quantize(still, "e4m3_64")
        bytes_ = lax.bitcast_convert_type(turning.astype(jnp.bfloat16), jnp.uint8)
        return {"codes": codes, "scales": scales, "rope": bytes_.reshape(values.shape[0], -1)}
    if rows.name == "rows_bf16_fp8":
        values = jnp.concatenate([numbers.simulate(still, "e4m3_64"), turning], -1)
    elif rows.name == "index_bf16_mxfp4":
        values = numbers.simulate(values, "e2m1_32")
    return {"values": values if rows.name == "rows_f32" else values.astype(jnp.bfloat16)}


def write(cache: KVCache, fields: dict[str, Any], kept: Tensor, slots: Tensor) -> None:
    """Store encoded rows `kept` at physical rows `slots`, in torch's memory."""
    pages, size = cache.pages, cache.layout.block_size
    place = slots // size, slots % size
    for name, array in fields.items():
        values = to_torch(array)[kept]
        if name == "values":
            pages.index_put_(place, values)
            continue
        one = next(field for field in cache.layout.sizes.fields if field.name == name)
        shape, strides = (len(pages), size, one.bytes), (pages.stride(0), one.stride, 1)
        view = pages.as_strided(shape, strides, pages.storage_offset() + one.offset)
        view.index_put_(place, values[:, : one.bytes])
