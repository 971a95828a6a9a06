"""Rows of paged caches in XLA: where they are, what their bytes mean, and the bytes of new ones."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hal.cache import KVCache
from hal.layouts import Layout
from hal_jax.exchange import array
from hal_jax.numbers import bits_scale, decode_rows, quantise, rounded, simulated, wide

__all__ = ["Pages", "encode", "pages", "physical", "read"]

_INDEX = {"index_fp8_132": "e4m3_128", "index_mxfp4_68": "e2m1_32", "index_int8_130": "int8_token"}


class Pages(NamedTuple):
    """A cache's pages and block table, as arrays."""

    data: Array
    table: Array


def pages(cache: KVCache) -> Pages:
    """The cache as XLA sees it; no copy where pages lie side by side."""
    return Pages(array(cache.pages), array(cache.block_table))


def physical(at: Pages, layout: Layout, slot: Array, row: Array) -> Array:
    """Physical rows of rows of requests; -1 where a row is negative or not mapped."""
    size = layout.block_size
    inside = (row >= 0) & (row < at.table.shape[1] * size)
    page = at.table[slot, jnp.where(inside, row, 0) // size]
    return jnp.where(inside & (page >= 0), page * size + row % size, -1)


def read(at: Pages, layout: Layout, row: Array) -> Array:
    """Float32 values [.., head_dim] of physical rows; zeros for -1."""
    flat = jnp.maximum(row.reshape(-1), 0)
    if layout.sizes.fields[0].name == "values":
        values = wide(at.data.reshape(-1, layout.head_dim)[flat])
    else:
        values = _decode(layout, _fields(at.data, layout, flat))
    values = values.reshape(*row.shape, layout.head_dim)
    return jnp.where((row >= 0)[..., None], values, 0.0)


def _fields(data: Array, layout: Layout, row: Array) -> dict[str, Array]:
    """Bytes of every field of the rows."""
    page, line = row // layout.block_size, row % layout.block_size

    def cut(begin: Array, number: Array, width: int) -> Array:
        return lax.dynamic_slice(data, (number, begin), (1, width))[0]

    return {
        field.name: jax.vmap(cut, (0, 0, None))(field.offset + line * field.stride, page, field.bytes)
        for field in layout.sizes.fields
    }


def _decode(layout: Layout, fields: dict[str, Array]) -> Array:
    codes, scales = fields["codes"], fields["scales"]
    if layout.name.startswith("v4_"):
        nope = decode_rows(codes, scales, "e4m3_64")
        return jnp.concatenate([nope, wide(_as(fields["rope"], jnp.bfloat16))], -1)
    if layout.name == "index_int8_130":
        return decode_rows(lax.bitcast_convert_type(codes, jnp.int8), wide(_as(scales, jnp.float16)), "int8_token")
    if layout.name == "index_fp8_132":
        return decode_rows(codes, _as(scales, jnp.float32), "e4m3_128")
    return decode_rows(codes, scales, _INDEX[layout.name])


def _as(data: Array, dtype: jnp.dtype) -> Array:
    """Bytes [.., n] as numbers of a wider type."""
    return lax.bitcast_convert_type(data.reshape(*data.shape[:-1], -1, jnp.dtype(dtype).itemsize), dtype)


def _bytes(x: Array) -> Array:
    """Numbers [n, k] as their bytes."""
    return x if x.dtype == jnp.uint8 else lax.bitcast_convert_type(x, jnp.uint8).reshape(x.shape[0], -1)


def encode(layout: Layout, values: Array) -> dict[str, Array]:
    """Every field of new rows, float32 values [n, head_dim]: bytes, or plain values in the layout's dtype."""
    name, split = layout.name, layout.head_dim - layout.rope_dim
    if name == "rows_f32":
        return {"values": values}
    if name in ("rows_bf16", "rows_bf16_fp8", "index_bf16_mxfp4"):
        if name == "rows_bf16_fp8":
            values = jnp.concatenate([simulated(values[:, :split], "e4m3_64"), values[:, split:]], -1)
        elif name == "index_bf16_mxfp4":
            values = simulated(values, "e2m1_32")
        return {"values": values.astype(jnp.bfloat16)}
    if name.startswith("v4_"):
        codes, scales = quantise(values[:, :split], "e4m3_64")
        rope = rounded(values[:, split:], "bfloat16").astype(jnp.bfloat16)
        return {"codes": codes, "scales": scales, "rope": _bytes(rope)}
    codes, scales = quantise(values, _INDEX[name])
    if name == "index_int8_130":
        scales = scales.astype(jnp.float16)
    if name == "index_fp8_132":
        scales = bits_scale(scales)
    return {"codes": _bytes(codes), "scales": _bytes(scales)}
