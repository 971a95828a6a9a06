"""`attn.compress`, `attn.compress_pool`, `attn.store`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.formats import PackedWeight
from hal_triton.common import frequencies
from hal_triton.experts import TYPES
from hal_triton.kernels.compress import advance_kernel, pool_kernel, pool_store_kernel
from hal_triton.kernels.rows import Pages
from hal_triton.kernels.store import store_kernel
from hal_triton.launch import launch, tiles
from hal_triton.matmul import linear
from hal_triton.tuning import chip, config

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache, StateCache
    from hal.rope import Rope


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
    """`attn.compress`: two projections with float32 results, then one kernel from windows to stored entries.

    Entries are never packed, so nothing depends on how many there are: the step can be captured.
    """
    kv, score = _project(x, wkv), _project(x, wgate)
    pages, dim = Pages.of(cache), cache.layout.head_dim
    tuned = config("pool-store-hadamard" if hadamard else "pool-store", chip())
    launch(
        pool_store_kernel,
        tiles(len(x), tuned["R"] * ratio) * ratio,
        tuned,
        kv,
        score,
        ape.contiguous(),
        state.tensor,
        state.tensor.stride(0),
        batch.positions,
        batch.request,
        batch.cu_seqlens,
        batch.slots,
        norm,
        frequencies(rope, x.device),
        cache.block_table,
        cache.block_table.shape[1],
        pages.data,
        pages.scales,
        pages.turning,
        pages.page_bytes,
        len(x),
        eps,
        D=dim,
        PAIRS=rope.dim // 2,
        ROPE=cache.layout.rope_dim,
        RATIO=ratio,
        OVERLAP=overlap,
        BLOCK=pages.block,
        KIND=pages.kind,
        HADAMARD=hadamard,
        DTYPE=TYPES[x.dtype],
    )
    _advance(kv, score, ape, batch, state, ratio)


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` summed and returned in float32."""
    if x.dtype == weight.dtype == torch.bfloat16:
        return linear(x, None, "none", PackedWeight(weight, None, "bf16", weight.shape), torch.float32)
    return F.linear(x.float(), weight.float())


def _advance(kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, ratio: int) -> None:
    tuned = config("advance", chip())
    launch(
        advance_kernel,
        tiles(len(kv), tuned["R"]),
        tuned,
        kv,
        score,
        ape.contiguous(),
        state.tensor,
        state.tensor.stride(0),
        batch.positions,
        batch.request,
        batch.cu_seqlens,
        batch.slots,
        len(kv),
        WIDTH=kv.shape[1],
        RATIO=ratio,
        ROWS=state.tensor.shape[1],
    )


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: kv, score [tokens, width] -> entries[entries, head_dim] float32; advances `state`."""
    dim = kv.shape[1] // (2 if overlap else 1)
    entries = batch.entries(ratio)
    count = len(entries.index)
    out = torch.empty(count, dim, device=kv.device)
    kv, score, tuned = kv.contiguous(), score.contiguous(), config("pool", chip())
    launch(
        pool_kernel,
        tiles(count, tuned["R"]),
        tuned,
        kv,
        score,
        ape.contiguous(),
        state.tensor,
        state.tensor.stride(0),
        batch.positions,
        batch.cu_seqlens,
        batch.slots,
        entries.request,
        entries.index,
        out,
        count,
        D=dim,
        RATIO=ratio,
        OVERLAP=overlap,
    )
    _advance(kv, score, ape, batch, state, ratio)
    return out


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
    """`attn.store`: values[rows, head_dim] through norm, RoPE, Hadamard and the layout's quantiser in one pass."""
    pages = Pages.of(cache)
    tuned = config("store-hadamard" if hadamard else "store", chip())
    launch(
        store_kernel,
        tiles(len(values), tuned["R"]),
        tuned,
        values.contiguous(),
        values if norm is None else norm,
        frequencies(rope, values.device),
        positions,
        slots,
        pages.data,
        pages.scales,
        pages.turning,
        pages.page_bytes,
        len(values),
        eps,
        D=values.shape[1],
        PAIRS=rope.dim // 2,
        ROPE=cache.layout.rope_dim,
        BLOCK=pages.block,
        KIND=pages.kind,
        NORM=norm is not None,
        HADAMARD=hadamard,
    )
