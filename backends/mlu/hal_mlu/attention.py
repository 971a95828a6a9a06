"""`attn.attend` by torch_mlu_ops, three ways that agree: one fused call, two merged passes, one pass over joined lists.

torch_mlu_ops takes rows as blocks of one: a query's window and entries are lists of physical rows. The window's list
and all lengths are made once per step; the list of chosen entries is one gather through the block table per layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hal_plain.steps import compressed_rows, window_rows
from torch import Tensor

from hal.derived import derived
from hal_mlu import tmo

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

GATHERED = 1 << 26  # elements of joined rows at a time (128 MiB)

Listed = tuple[Tensor, Tensor, Tensor]
"""Rows [n, head_dim] of a cache; int32 [tokens, most], which of them each query sees; int32 [tokens], how many."""


def attend_fused(
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
) -> tuple[Tensor, None]:
    """`attn.attend` in one call, for calls that decline lse: whether the vendor's contains the sink is not said."""
    assert compressed is not None
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not len(q):
        return out, None
    cache, table, lengths = _window(batch, window, window_size)
    entries, entry_table, entry_lengths = _compressed(batch, compressed, rows, ratio)
    tmo.operator("sliding_window_compress_attention")(
        q=q.contiguous(),
        cache_swa=cache.view(-1, 1, 1, cache.shape[-1]),
        cache_comp=entries.view(-1, 1, 1, entries.shape[-1]),
        out=out,
        block_tables_swa=table,
        block_tables_comp=entry_table,
        cu_seq_q=batch.derive(("mlu", "one by one"), lambda: torch.arange(len(q) + 1, device=q.device).int()),
        context_lens_swa=lengths,
        context_lens_comp=entry_lengths,
        q_quant_scale=None,
        cache_quant_scale_swa=None,
        cache_quant_scale_comp=None,
        out_quant_scale=None,
        sink=sink,
        softmax_scale=scale,
        max_contxt_len_swa=table.shape[1],
        max_contxt_len_comp=entry_table.shape[1],
        max_seq_q=1,
        out_dtype=q.dtype,
    )
    return out, None


def attend_merged(
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
    """`attn.attend` as a pass over the window and one over the entries, merged by lse; the sink counts once, last."""
    if not len(q):
        return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    q = q.contiguous()
    out, lse = tmo.attention(q, *_window(batch, window, window_size), scale)
    if compressed is not None and (rows is not None or ratio):
        entries, table, lengths = _compressed(batch, compressed, rows, ratio)
        # what a pass over no rows gives is not documented: it gets one row, and no weight
        none = derived(lengths, ("mlu", "none"), lambda: (lengths == 0).view(-1, 1, 1))
        some = derived(lengths, ("mlu", "some"), lambda: lengths.clamp_min(1))
        more, more_lse = tmo.attention(q, entries, table, some, scale)
        more, more_lse = more.masked_fill(none, 0.0), more_lse.masked_fill(none.squeeze(-1), -torch.inf)
        out, lse = out.unsqueeze(1).float(), lse.unsqueeze(-1)
        tmo.operator("update_out_and_lse")(
            out=out, lse=lse, block_out=more.unsqueeze(1).float(), block_lse=more_lse.unsqueeze(-1)
        )
        out, lse = out.squeeze(1), lse.squeeze(-1)
    if sink is not None:  # it adds exp(sink) to a denominator exp(lse)
        out = out * torch.sigmoid(lse - sink).unsqueeze(-1)
    return out.to(q.dtype), lse


def attend_window(
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
) -> tuple[Tensor, None]:
    """`attn.attend` of layers without entries, for calls that decline lse: one pass, the sink inside."""
    if not len(q):
        return torch.empty_like(q), None
    return tmo.attention(q.contiguous(), *_window(batch, window, window_size), scale, sink)[0], None


def attend_joined(
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
) -> tuple[Tensor, None]:
    """`attn.attend` in one pass over window and entries, gathered side by side for some queries at a time."""
    assert compressed is not None
    out = torch.empty_like(q)
    cache, table, lengths = _window(batch, window, window_size)
    entries, entry_table, entry_lengths = _compressed(batch, compressed, rows, ratio)
    near, far = table.shape[1], entry_table.shape[1]
    step = max(1, GATHERED // ((near + far) * q.shape[-1]))
    for low in range(0, len(q), step):
        at = slice(low, low + step)
        count = len(q[at])
        joined = torch.cat([cache[table[at].flatten()], entries[entry_table[at].flatten()]])
        order = torch.arange(len(joined), dtype=torch.int32, device=q.device)
        lists, both = tmo.operator("concat_block_table")(
            first_block_table=order[: count * near].view(count, near),
            first_context_lens=lengths[at],
            second_block_table=order[count * near :].view(count, far),
            second_context_lens=entry_lengths[at],
        )
        out[at] = tmo.attention(q[at].contiguous(), joined, lists.clamp_min(0), both, scale, sink)[0]
    return out, None


def _window(batch: Batch, cache: KVCache, size: int) -> Listed:
    def make() -> tuple[Tensor, Tensor]:
        return _table(window_rows(batch, cache, size)), (batch.positions + 1).clamp_max(size).int()

    key = ("mlu", "window lists", size, id(cache.block_table), cache.layout.block_size)
    return _rows(cache), *batch.derive(key, make)


def _compressed(batch: Batch, cache: KVCache, rows: Tensor | None, ratio: int) -> Listed:
    """Lists of chosen entries (`attn.select`'s: chosen ones in front), or of every visible one."""
    if rows is None:
        key = ("mlu", "entry lists", ratio, id(cache.block_table), cache.layout.block_size)
        table = batch.derive(key, lambda: _table(compressed_rows(batch, cache, None, ratio)))
        lengths = batch.derive(("mlu", "entry counts", ratio), lambda: batch.visible(ratio).int())
    else:
        most = rows.shape[1]
        table = _table(compressed_rows(batch, cache, rows, ratio))
        lengths = batch.derive(
            ("mlu", "chosen counts", ratio, most), lambda: batch.visible(ratio).clamp_max(most).int()
        )
    return _rows(cache), table, lengths


def _table(physical: Tensor) -> Tensor:
    """int32 lists, at least one wide; row 0 stands where nothing is listed."""
    table = physical.clamp_min(0).int().contiguous()
    return table if table.shape[1] else table.new_zeros(len(table), 1)


def _rows(cache: KVCache) -> Tensor:
    """[blocks * rows, head_dim], without a copy where pages lie side by side."""
    return cache.pages.reshape(-1, cache.layout.head_dim)
