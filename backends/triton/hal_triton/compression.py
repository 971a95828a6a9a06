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
from hal_triton.kernels.windows import project_pool_kernel, store_entries_kernel
from hal_triton.launch import launch, tiles
from hal_triton.matmul import FEW_ROWS, linear
from hal_triton.tuning import Config, chip, config, has

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
    """`attn.compress`: few tokens are projected, then pooled and stored; many are pooled while they are projected.

    Entries are never packed, so nothing depends on how many there are: the step can be captured.
    """
    pages, dim = Pages.of(cache), cache.layout.head_dim
    together = f"project-pool-{'overlap' if overlap else 'plain'}"
    if _fits(together, x, wkv, wgate, batch, ratio, dim):
        kv, score = _together(
            x, wkv, wgate, ape, norm, rope, batch, state, cache, ratio, overlap, hadamard, eps, config(together, chip())
        )
        _advance(kv, score, ape, batch, state, ratio)
        return
    kv, score = _project(x, wkv), _project(x, wgate)
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


def _fits(entry: str, x: Tensor, wkv: Tensor, wgate: Tensor, batch: Batch, ratio: int, dim: int) -> bool:
    """Whether there are many tokens, in bfloat16, and whole windows in a tile; shapes alone decide."""
    many = len(x) > FEW_ROWS * batch.requests and {x.dtype, wkv.dtype, wgate.dtype} == {torch.bfloat16}
    if not many or not has(entry, chip()):
        return False
    tuned = config(entry, chip())
    return tuned["BM"] % ratio == 0 and dim % tuned["BN"] == 0


def _together(
    x: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm: Tensor,
    rope: Rope,
    batch: Batch,
    state: StateCache,
    cache: KVCache,
    ratio: int,
    overlap: bool,
    hadamard: bool,
    eps: float,
    tuned: Config,
) -> tuple[Tensor, Tensor]:
    """Store the entries that tiles of tokens complete; kv and score [tokens, width] get the rows that a state keeps."""
    pages, dim, (tokens, features) = Pages.of(cache), cache.layout.head_dim, x.shape
    request, first = _windows(batch, ratio, overlap, tuned["BM"])
    count, windows = len(request), tuned["BM"] // ratio
    pooled = torch.empty(count, windows, dim, dtype=x.dtype, device=x.device)
    kv, score = (torch.empty(tokens, len(wkv), device=x.device) for _ in range(2))
    where = (batch.positions, batch.cu_seqlens, batch.slots, request, first)
    launch(
        project_pool_kernel,
        count * (dim // tuned["BN"]),
        tuned,
        x.contiguous(),
        wkv.contiguous(),
        wgate.contiguous(),
        ape.contiguous(),
        state.tensor,
        state.tensor.stride(0),
        *where,
        pooled,
        kv,
        score,
        count,
        features,
        D=dim,
        RATIO=ratio,
        OVERLAP=overlap,
        EVEN=features % tuned["BK"] == 0,
    )
    stored = config("store-hadamard" if hadamard else "store", chip())
    launch(
        store_entries_kernel,
        tiles(count * windows, stored["R"]),
        stored,
        pooled,
        *where,
        norm,
        frequencies(rope, x.device),
        cache.block_table,
        cache.block_table.shape[1],
        pages.data,
        pages.scales,
        pages.turning,
        pages.page_bytes,
        count,
        eps,
        D=dim,
        PAIRS=rope.dim // 2,
        ROPE=cache.layout.rope_dim,
        RATIO=ratio,
        WINDOWS=windows,
        BLOCK=pages.block,
        KIND=pages.kind,
        HADAMARD=hadamard,
    )
    return kv, score


def _windows(batch: Batch, ratio: int, overlap: bool, size: int) -> tuple[Tensor, Tensor]:
    """Tiles of `size` positions over every request's windows: whose they are (int32, -1: nobody's), and from where.

    As many as any cut of the tokens into requests may need. With overlap one window more has the last one's first half.
    """

    def make() -> tuple[Tensor, Tensor]:
        lengths = batch.cu_seqlens.diff().long()
        starts = batch.positions[batch.cu_seqlens[:-1].long().clamp(max=len(batch.positions) - 1)]
        begin = starts // ratio * ratio
        end = ((starts + lengths + ratio - 1) // ratio + overlap) * ratio
        needed = torch.where(lengths > 0, (end - begin + size - 1) // size, 0)
        after = needed.cumsum(0)
        most = len(batch.positions) + len(lengths) * ((2 + overlap) * ratio + size - 1)
        tile = torch.arange(most // size, device=after.device)
        request = torch.searchsorted(after, tile, right=True)
        known = request.clamp(max=len(lengths) - 1)
        first = begin[known] + (tile - (after - needed)[known]) * size
        return torch.where(request < len(lengths), request, -1).int(), first

    return batch.derive(("triton", "windows", ratio, overlap, size), make)


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
