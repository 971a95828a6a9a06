"""DeepSeek's sparse attention: the lightning indexer, by version."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import FLOATS, HALVES, INT32, Checks, operator

HEADS = (32, 64)


def _choose(scores: Tensor, table: Tensor, topk: int, out: Tensor, lens: Tensor) -> None:
    """Writes `table[best]`; fewer than `topk` keys: all of them."""
    order = torch.argsort(-scores, stable=True)[:topk]
    out[: len(order)] = table[order]
    lens.fill_(len(order))


def _decode(
    check: Checks,
    query: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    kv_cache_block_table: Tensor,
    seen: list[int],
    k_cache_block_table: Tensor,
    index_topk: int,
    softmax_scale: float,
    sparse_block_table: Tensor,
    sparse_context_lens: Tensor,
    offset: Tensor | None,
) -> None:
    """Each row of the batch scores the first `seen` keys of its block table."""
    check("query", query, HALVES, "batch 1 heads 128")
    check("k_cache", k_cache, (query.dtype,), "_ 1 size 128")
    check("weights", weights, FLOATS, "batch 1 heads 1")
    check("kv_cache_block_table", kv_cache_block_table, INT32, "batch _")
    check("k_cache_block_table", k_cache_block_table, INT32, "batch _")
    check.sizes["topk"] = index_topk
    check("sparse_block_table", sparse_block_table, INT32, "batch topk")
    check("sparse_context_lens", sparse_context_lens, INT32, "batch")
    check("kv_cache_block_table_offset", offset, INT32, "batch")
    check.that(query.shape[2] in HEADS, f"{query.shape[2]} heads, wanted one of {HEADS}")
    size = k_cache.shape[2]
    for row, count in enumerate(seen):
        blocks = -(-count // size)
        check.that(
            blocks <= k_cache_block_table.shape[1], f"{count} keys do not fit {k_cache_block_table.shape[1]} blocks"
        )
        check.that(
            count <= kv_cache_block_table.shape[1],
            f"{count} keys, kv_cache_block_table has {kv_cache_block_table.shape[1]}",
        )
        pages = k_cache_block_table[row, :blocks]
        check.indices("k_cache_block_table", pages, 0, len(k_cache))
        keys = k_cache[pages.long(), 0].flatten(0, 1)[:count].float()
        heads = (query[row, 0].float() @ keys.T).clip(min=0) * weights[row, 0].float() * softmax_scale
        table = kv_cache_block_table[row] if offset is None else kv_cache_block_table[row] + offset[row]
        _choose(heads.sum(0), table, index_topk, sparse_block_table[row], sparse_context_lens[row])


@operator
def masked_indexer_select_paged_kv(
    query: Tensor,
    k_cache: Tensor,
    weights: Tensor,
    kv_cache_block_table: Tensor,
    cu_seq_q_lens: Tensor | None,
    cu_seq_k_lens: Tensor | None,
    k_context_lens: Tensor,
    k_cache_block_table: Tensor,
    is_prefill: bool,
    index_topk: int,
    kv_cache_block_size: int,
    softmax_scale: float,
    q_scale: Tensor | None = None,
    k_scale_cache: Tensor | None = None,
    sparse_block_table: Tensor | None = None,
    sparse_context_lens: Tensor | None = None,
    is_score_float: bool = False,
    compress_ratio: int = 1,
    kv_cache_block_table_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """1.12.1: context lengths are tokens, before compression."""
    check = Checks("masked_indexer_select_paged_kv")
    _reserved(check, is_prefill, cu_seq_q_lens, cu_seq_k_lens, q_scale, k_scale_cache, kv_cache_block_size)
    check("k_context_lens", k_context_lens, INT32, "batch")
    capacity = k_cache_block_table.shape[1] * k_cache.shape[2]
    seen = [length // compress_ratio for length in k_context_lens.tolist()]
    lengths = "k_context_lens are lengths before compression"
    check.that(max(seen, default=0) <= capacity, f"{max(seen, default=0)} keys, {capacity} are mapped: {lengths}")
    table, lens = _results(len(query), index_topk, sparse_block_table, sparse_context_lens)
    _decode(
        check, query, k_cache, weights, kv_cache_block_table, seen, k_cache_block_table, index_topk, softmax_scale,
        table, lens, kv_cache_block_table_offset,
    )  # fmt: skip
    return table, lens


def _reserved(
    check: Checks,
    is_prefill: bool,
    cu_seq_q_lens: Tensor | None,
    cu_seq_k_lens: Tensor | None,
    q_scale: Tensor | None,
    k_scale_cache: Tensor | None,
    kv_cache_block_size: int,
) -> None:
    check.that(not is_prefill, "only paged keys (is_prefill=False) are emulated")
    check.absent(cu_seq_q_lens=cu_seq_q_lens, cu_seq_k_lens=cu_seq_k_lens, q_scale=q_scale, k_scale_cache=k_scale_cache)
    check.that(kv_cache_block_size == 1, "selected rows have a block size of 1")


def _results(batch: int, topk: int, table: Tensor | None, lens: Tensor | None) -> tuple[Tensor, Tensor]:
    table = torch.full((batch, topk), -1, dtype=torch.int32) if table is None else table
    return table, torch.zeros(batch, dtype=torch.int32) if lens is None else lens
