"""`attn.select` and `attn.index_scores`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal_triton.common import frequencies, widest
from hal_triton.experts import as_rows
from hal_triton.kernels.rows import Pages
from hal_triton.kernels.select import query_kernel, score_kernel, select_kernel, top_k_kernel
from hal_triton.launch import launch, power_of_two, tiles
from hal_triton.matmul import empty_codes
from hal_triton.tuning import chip, config, has, native_fp8

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache
    from hal.rope import Rope

SEGMENT = 8192
"""Scores that one program chooses from, where the chip's table allows as many."""
ENTRIES = 2048
"""Entries that one program scores and chooses from."""
SCORES = 1 << 26
"""Scores held at a time: 256 MiB."""


def select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    *,
    top_k: int,
    ratio: int,
    hadamard: bool,
    scale: float,
) -> Tensor:
    """`attn.select`: rows[tokens, top_k] int32 in ascending order, then -1.

    Nothing is scored while every visible entry is chosen.
    """
    tokens, heads, dim = q.shape
    width = widest(batch, cache, ratio)
    if width <= top_k:
        place = torch.arange(top_k, dtype=torch.int32, device=q.device)
        return torch.where(place < batch.visible(ratio)[:, None], place, -1)
    activation = cache.layout.index_activation
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=q.device)
    if has("select", chip()) and dim == 128 and 16 < heads <= 64 and 2 * top_k <= ENTRIES:
        _select(q, weights, rope, batch, cache, chosen, width, ratio, hadamard, scale)
        return chosen
    codes, scales = empty_codes(tokens * heads, dim, activation, q.dtype, q.device)
    tuned = config("query", chip())
    launch(
        query_kernel,
        tiles(tokens * heads, tuned["R"]),
        tuned,
        q.contiguous(),
        batch.positions,
        frequencies(rope, q.device),
        as_rows(codes),
        as_rows(scales),
        tokens * heads,
        heads,
        D=dim,
        PAIRS=rope.dim // 2,
        HADAMARD=hadamard,
        ACTIVATION=activation,
    )
    step = max(1, SCORES // width)
    held = torch.empty(min(step, tokens), width, device=q.device)
    for low in range(0, tokens, step):
        count = min(step, tokens - low)
        at = slice(low * heads, (low + count) * heads)
        scores = held[:count]
        _score(codes[at], scales[at], weights[low : low + count], batch, low, cache, scores, activation, ratio, scale)
        _top_k(scores, None, batch.positions[low : low + count], chosen[low : low + count], ratio)
    return chosen


def _select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    chosen: Tensor,
    width: int,
    ratio: int,
    hadamard: bool,
    scale: float,
) -> None:
    """Best entries of each token into `chosen`: scored and chosen at once, then the best of all segments' best."""
    (tokens, heads, dim), top_k, pages = q.shape, chosen.shape[1], Pages.of(cache)
    activation, tuned = cache.layout.index_activation, config("select", chip())
    q, weights = q.contiguous(), weights.contiguous()
    each = tiles(min(power_of_two(width), ENTRIES), tuned["N"])
    segments = tiles(width, each * tuned["N"])
    step = tokens if segments == 1 else max(1, SCORES // (segments * top_k))
    for low in range(0, tokens, step):
        part = slice(low, low + step)
        into, positions = chosen[part], batch.positions[part]
        best = into if segments == 1 else into.new_empty(len(into), segments * top_k)
        kept = weights if segments == 1 else torch.empty(best.shape, device=q.device)
        launch(
            select_kernel,
            len(into) * segments,
            tuned,
            q[part],
            weights[part],
            frequencies(rope, q.device),
            positions,
            batch.request[part],
            batch.slots,
            cache.block_table,
            cache.block_table.shape[1],
            pages.data,
            pages.scales,
            pages.page_bytes,
            kept,
            best,
            len(into),
            heads,
            segments,
            top_k,
            scale,
            D=dim,
            PAIRS=rope.dim // 2,
            HADAMARD=hadamard,
            RATIO=ratio,
            BLOCK=pages.block,
            KIND=_kind(pages),
            ACTIVATION=_values(activation),
            UNIT=_unit(pages, activation),
            H=max(16, power_of_two(heads)),
            LAST=segments == 1,
            TILES=each,
        )
        if segments > 1:
            _top_k(kept, best, positions, into, ratio)


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: scores[tokens, entries] float32, -inf for entries that a token does not see."""
    tokens = len(q)
    scores = torch.empty(tokens, widest(batch, cache, ratio), device=q.device)
    rows = q.contiguous().view(-1, q.shape[2])
    _score(rows, rows, weights, batch, 0, cache, scores, "none", ratio, scale, fill=True)
    return scores


def _score(
    codes: Tensor,
    scales: Tensor,
    weights: Tensor,
    batch: Batch,
    low: int,
    cache: KVCache,
    scores: Tensor,
    activation: str,
    ratio: int,
    scale: float,
    fill: bool = False,
) -> None:
    """Scores of the batch's tokens from `low` on, `codes` and `scales` [tokens * heads, ...]."""
    (tokens, width), heads, pages = scores.shape, weights.shape[1], Pages.of(cache)
    tuned = config("score", chip())
    launch(
        score_kernel,
        tokens * tiles(width, tuned["N"]),
        tuned,
        as_rows(codes),
        as_rows(scales),
        weights.contiguous(),
        batch.positions[low : low + tokens],
        batch.request[low : low + tokens],
        batch.slots,
        cache.block_table,
        cache.block_table.shape[1],
        pages.data,
        pages.scales,
        pages.page_bytes,
        scores,
        tokens,
        heads,
        width,
        scale,
        D=cache.layout.head_dim,
        RATIO=ratio,
        BLOCK=pages.block,
        KIND=_kind(pages),
        ACTIVATION=_values(activation),
        UNIT=_unit(pages, activation),
        H=max(16, power_of_two(heads)),
        FILL=fill,
    )


def _kind(pages: Pages) -> str:
    return "bf16" if pages.kind.startswith("bf16") else pages.kind


def _values(activation: str) -> str:
    return "bf16" if activation == "none" else activation


def _unit(pages: Pages, activation: str) -> str:
    native = pages.kind == "fp8" and activation == "e4m3_128" and native_fp8(chip())
    return "fp8" if native else "bf16"


def _top_k(scores: Tensor, rows: Tensor | None, positions: Tensor, out: Tensor, ratio: int) -> None:
    """Best of each row of `scores` into `out`; long rows segment by segment, then the best of the segments' best."""
    (tokens, width), top_k = scores.shape, out.shape[1]
    tuned = config("top-k", chip())
    segment = min(SEGMENT, tuned["N"])
    size = min(max(power_of_two(width), power_of_two(top_k)), max(segment, 2 * power_of_two(top_k)))
    segments = tiles(width, size)
    last = segments == 1
    best = out if last else torch.empty(tokens, segments * top_k, dtype=torch.int32, device=out.device)
    kept = scores if last else torch.empty(tokens, segments * top_k, device=out.device)
    launch(
        top_k_kernel,
        tokens * segments,
        replace(tuned, tiles={"N": size}),
        scores,
        best if rows is None else rows,
        positions,
        kept,
        best,
        tokens,
        width,
        segments,
        top_k,
        RATIO=ratio,
        LISTED=rows is not None,
        LAST=last,
    )
    if not last:
        _top_k(kept, best, positions, out, ratio)
