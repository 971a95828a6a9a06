"""`attn.compress` with vllm-ascend's compressor, and `attn.store` into 640-byte rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hal_plain.compression import prepared
from torch import Tensor

from hal.derived import derived
from hal.formats import hadamard_transform
from hal_ascend.steps import slots, starts

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache, StateCache
    from hal.rope import Rope

INTERLEAVED = 2  # rotary_mode
RING = 2  # cache_mode: a bank of coff * ratio rows per request, as StateCache has them
TILE, ROW = 64, 640
UE8M0, PACKED = 2, 1  # quant_mode, layout of kv_compress_epilog


def compress(
    x: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm: Tensor,
    rope: Rope,
    batch: Batch,
    state: StateCache,
    cache: KVCache,
    *,
    ratio: int,
    overlap: bool,
    hadamard: bool,
    eps: float,
) -> None:
    """`attn.compress`: hidden states x[tokens, hidden] to entries in `cache`; the tail stays in `state`."""
    if not len(x):
        return
    entries = batch.entries(ratio)
    sin, cos = batch.derive(("ascend", "entry angles", rope, ratio), lambda: _angles(batch, rope, ratio, len(x)))
    rows = torch.ops._C_ascend.compressor(
        x,
        wkv.to(x.dtype),
        wgate.to(x.dtype),
        state.tensor,
        ape,
        norm.to(x.dtype),
        sin.to(x.dtype),
        cos.to(x.dtype),
        slots(batch),
        batch.cu_seqlens,
        None,
        starts(batch),
        rope.dim,
        ratio,
        2 if overlap else 1,
        eps,
        INTERLEAVED,
        RING,
    )[: len(entries.index)]
    physical = batch.derive(
        ("ascend", "entries", ratio, id(cache.block_table), cache.layout.block_size),
        lambda: cache.physical(batch.slots[entries.request], entries.index),
    )
    _write(hadamard_transform(rows) if hadamard else rows, physical, cache)


def _angles(batch: Batch, rope: Rope, ratio: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines [min(T, T // ratio + B), rope.dim], each twice: one of every entry, and padding."""
    positions = batch.entries(ratio).positions
    room = min(tokens, tokens // ratio + batch.requests)
    padded = torch.cat([positions, positions.new_zeros(max(0, room - len(positions)))])
    cos, sin = rope.cos_sin(padded)
    return sin.repeat_interleave(2, -1), cos.repeat_interleave(2, -1)


def store(
    values: Tensor,
    norm: Tensor | None,
    rope: Rope,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
    *,
    hadamard: bool,
    eps: float,
) -> None:
    """`attn.store`: values[rows, head_dim] into `v4_640` pages at physical rows `slots`."""
    _write(prepared(values, norm, rope, positions, hadamard=hadamard, eps=eps), slots, cache)


def _write(rows: Tensor, physical: Tensor, cache: KVCache) -> None:
    if cache.layout.name != "v4_640" or not cache.pages.is_contiguous():  # the operator takes no strides
        cache.write(rows, physical)
    elif len(rows):
        flat = derived(physical, ("ascend", "int32"), physical.int)
        pages = cache.pages.view(-1, 1, ROW)
        torch.ops._C_ascend.kv_compress_epilog(pages, rows, flat, TILE, UE8M0, True, PACKED)
