"""`attn.attend`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal_triton.common import widest
from hal_triton.kernels.attend import attend_kernel, merge_kernel
from hal_triton.kernels.rows import Pages
from hal_triton.launch import launch, tiles
from hal_triton.tuning import chip, config, has

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

PROGRAMS = 128
"""About as many as there are multiprocessors, which hold one program each; rows are cut while there are fewer."""
PART = 512
"""Rows that need no cut: sums of a part of 64 heads cross memory twice, as many bytes as 450 packed rows."""
LOG2E = 1.4426950408889634


def attend(
    q: Tensor,
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    sink: Tensor | None,
    batch: Batch,
    *,
    scale: float,
    window_size: int,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    """`attn.attend`: q[tokens, heads, head_dim] -> out like q, lse[tokens, heads] float32.

    Few tokens get tiles of fewer heads first, which costs no bytes; then long rows are cut into parts and merged.
    """
    tokens, heads, _ = q.shape
    entry = f"attend-{_family(window)}"
    few = tokens * tiles(heads, config(entry, chip())["H"]) < PROGRAMS
    if few and entry == "attend-v4" and has("attend-v4-few", chip()):
        entry = "attend-v4-few"
    programs = max(1, tokens * tiles(heads, config(entry, chip())["H"]))
    parts = max(1, min(tiles(_rows_seen(compressed, rows, batch, ratio), PART), PROGRAMS // programs))
    return _attend(q, window, compressed, rows, sink, batch, scale, window_size, ratio, entry, parts)


def attend_whole(
    q: Tensor,
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    sink: Tensor | None,
    batch: Batch,
    *,
    scale: float,
    window_size: int,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    """`attn.attend` without cutting: a token's bits do not depend on the batch around it."""
    entry = f"attend-{_family(window)}"
    return _attend(q, window, compressed, rows, sink, batch, scale, window_size, ratio, entry, 1)


def _family(window: KVCache) -> str:
    return "v4" if window.layout.name == "v4_584" else "rows"


def _rows_seen(compressed: KVCache | None, rows: Tensor | None, batch: Batch, ratio: int) -> int:
    """Most compressed rows that any token sees."""
    if compressed is None:
        return 0
    if rows is not None:
        return rows.shape[1]
    return widest(batch, compressed, ratio) if ratio else 0


def _attend(
    q: Tensor,
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    sink: Tensor | None,
    batch: Batch,
    scale: float,
    window_size: int,
    ratio: int,
    entry: str,
    parts: int,
) -> tuple[Tensor, Tensor]:
    tokens, heads, dim = q.shape
    q = q.contiguous()
    out, lse = torch.empty_like(q), torch.empty(tokens, heads, device=q.device)
    seen = _rows_seen(compressed, rows, batch, ratio)
    cache = window if compressed is None else compressed
    near, far = Pages.of(window), Pages.of(cache)
    tuned = config(entry, chip())
    part_rows = tiles(tiles(max(1, seen), parts), tuned["N"]) * tuned["N"]
    part_out, part_lse = out, lse
    if parts > 1:
        part_out = torch.empty(tokens, parts, heads, dim, device=q.device)
        part_lse = torch.empty(tokens, parts, heads, device=q.device)
    listed = rows.contiguous() if rows is not None and compressed is not None else None
    launch(
        attend_kernel,
        tokens * tiles(heads, tuned["H"]) * parts,
        tuned,
        q,
        near.data,
        near.scales,
        near.turning,
        near.page_bytes,
        window.block_table,
        window.block_table.shape[1],
        far.data,
        far.scales,
        far.turning,
        far.page_bytes,
        cache.block_table,
        cache.block_table.shape[1],
        cache.block_table if listed is None else listed,
        lse if sink is None else sink,
        batch.positions,
        batch.request,
        batch.slots,
        part_out,
        part_lse,
        tokens,
        heads,
        0 if listed is None else listed.shape[1],
        parts,
        part_rows,
        scale * LOG2E,
        D=dim,
        ROPE=min(window.layout.rope_dim, dim),
        WINDOW=window_size,
        WINDOW_BLOCK=near.block,
        RATIO=max(1, ratio),
        BLOCK=far.block,
        KIND="v4" if near.kind == "v4" else "bf16",
        ROWS="none" if compressed is None or (rows is None and not ratio) else "prefix" if rows is None else "listed",
        HAS_SINK=sink is not None,
        CUT=parts > 1,
    )
    if parts > 1:
        merge = config("merge", chip())
        work = tiles(tokens * heads, merge["R"])
        last = sink if sink is not None else lse
        launch(
            merge_kernel,
            work,
            merge,
            part_out,
            part_lse,
            last,
            out,
            lse,
            tokens * heads,
            heads,
            parts,
            D=dim,
            HAS_SINK=sink is not None,
        )
    return out, lse
