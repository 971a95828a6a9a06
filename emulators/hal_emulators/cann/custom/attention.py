"""Sparse attention over shared keys and values, and the quantised indexer (csrc/attention/*/README.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal_emulators.cann.custom import kernel

METADATA = 1024  # int32 words of a schedule
TILE, ROPE, ROW = 64, 64, 640


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise RuntimeError(words)


def _rows(pages: Tensor, table: Tensor, count: int) -> Tensor:
    """[count, ..]: the first rows of one request; `table` names its pages."""
    rows = torch.arange(count)
    return pages[table[rows // pages.shape[1]].long(), rows % pages.shape[1]]


def _packed_rows(rows: Tensor) -> Tensor:
    """float32 [n, 512] of 640-byte rows: 64 bf16 with RoPE, 448 e4m3, one ue8m0 per 64 of those."""
    rope = rows[:, : 2 * ROPE].contiguous().view(torch.bfloat16).float()
    codes = rows[:, 2 * ROPE : 2 * ROPE + 448].contiguous().view(torch.float8_e4m3fn).float()
    scales = torch.exp2(rows[:, 2 * ROPE + 448 : 2 * ROPE + 455].float() - 127)
    return torch.cat([codes * scales.repeat_interleave(TILE, -1), rope], -1)


def _attend(
    q: Tensor,
    ori_kv: Tensor,
    cmp_kv: Tensor | None,
    indices: Tensor | None,
    ori_table: Tensor,
    cmp_table: Tensor | None,
    cu: Tensor,
    used: Tensor,
    sinks: Tensor | None,
    scale: float,
    ratio: int,
    left: int,
    decode: Any,
) -> Tensor:
    """Every request's queries against its window, and its compressed rows up to (position + 1) // ratio."""
    out = torch.zeros_like(q)
    for request, end in enumerate(used.tolist()):
        at = slice(int(cu[request]), int(cu[request + 1]))
        queries = q[at].float()
        position = torch.arange(end - len(queries), end).unsqueeze(1)
        keys = decode(_rows(ori_kv, ori_table[request], end).flatten(1))
        row = torch.arange(end)
        seen = (row <= position) & (row >= position - left)
        if cmp_kv is not None and cmp_table is not None:
            entries = end // ratio
            keys = torch.cat([keys, decode(_rows(cmp_kv, cmp_table[request], entries).flatten(1))])
            entry = torch.arange(entries) < (position + 1) // ratio
            if indices is not None:
                listed = indices[at, 0].long()
                listed = listed.where((listed >= 0).cumprod(-1).bool(), entries)  # -1 ends a list
                chosen = torch.zeros(len(queries), entries + 1, dtype=torch.bool).scatter_(1, listed, True)
                entry = entry & chosen[:, :entries]
            seen = torch.cat([seen, entry], 1)
        scores = torch.einsum("thd,sd->ths", queries, keys) * scale
        scores = scores.masked_fill(~seen.unsqueeze(1), -torch.inf)
        virtual = torch.full((len(queries), q.shape[1], 1), -torch.inf)
        if sinks is not None:
            virtual = sinks.float().view(1, -1, 1).expand(virtual.shape)
        weights = torch.cat([scores, virtual], -1).softmax(-1)[..., :-1]
        out[at] = torch.einsum("ths,sd->thd", weights, keys).to(q.dtype)
    return out


@kernel
def npu_sparse_attn_sharedkv(q: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """bf16 rows [blocks, rows, 1, 512]; the second result is reserved."""
    _require(q.dtype in (torch.bfloat16, torch.float16), "q must be bf16 or fp16")
    _require(q.shape[1] == 64, f"q has 64 heads, not {q.shape[1]}")
    return _sharedkv(q, words, words["ori_kv"].dtype == q.dtype, lambda rows: rows.float())


@kernel
def npu_kv_quant_sparse_attn_sharedkv(q: Tensor, kv_quant_mode: int, **words: Any) -> tuple[Tensor, Tensor]:
    """Rows of 640 bytes [blocks, rows, 1, 640]."""
    modes = (kv_quant_mode, words.get("tile_size"), words.get("rope_head_dim"))
    _require(modes == (1, TILE, ROPE), f"kv_quant_mode, tile_size and rope_head_dim are 1, 64, 64, not {modes}")
    fits = words["ori_kv"].shape[-1] == ROW and words["ori_kv"].element_size() == 1
    return _sharedkv(q, words, fits, lambda rows: _packed_rows(rows.view(torch.uint8)))


def _sharedkv(q: Tensor, words: dict[str, Any], fits: bool, decode: Any) -> tuple[Tensor, Tensor]:
    ori, cmp, indices = words["ori_kv"], words.get("cmp_kv"), words.get("cmp_sparse_indices")
    _require(fits, "ori_kv's rows do not fit q")
    _require(q.shape[1] in (64, 128) and q.shape[2] == 512, f"q is [T, 64 or 128, 512], not {list(q.shape)}")
    _require(ori.is_contiguous() and (cmp is None or cmp.is_contiguous()), "pages are contiguous")
    _require(words.get("layout_q") == "TND" and words.get("layout_kv") == "PA_ND", "layouts are TND and PA_ND")
    _require(words.get("metadata") is not None and len(words["metadata"]) == METADATA, "metadata is int32 [1024]")
    _require(ori.dim() == 4 and ori.shape[1] % 16 == 0 and ori.shape[2] == 1, "pages are [blocks, 16 n, 1, row]")
    _require(words["ori_block_table"].dtype == torch.int32, "block tables are int32")
    _require(words["cu_seqlens_q"].dtype == torch.int32, "cu_seqlens_q is int32")
    if indices is not None:
        _require(indices.dtype == torch.int32 and indices.shape[1] == 1, "indices are int32 [T, 1, K]")
        _require(indices.shape[2] in (512, 1024), "512 or 1024 entries are selected")
    sinks = words.get("sinks")
    _require(sinks is None or sinks.dtype == torch.float32, "sinks are float32")
    out = _attend(
        q,
        ori,
        cmp,
        indices,
        words["ori_block_table"],
        words.get("cmp_block_table"),
        words["cu_seqlens_q"],
        words["seqused_kv"],
        sinks,
        words["softmax_scale"],
        words.get("cmp_ratio", 0),
        words["ori_win_left"],
        decode,
    )
    return out, torch.empty(0)


@kernel
def npu_sparse_attn_sharedkv_metadata(*arguments: Any, **words: Any) -> Tensor:
    return torch.zeros(METADATA, dtype=torch.int32)


@kernel
def npu_kv_quant_sparse_attn_sharedkv_metadata(*arguments: Any, **words: Any) -> Tensor:
    return torch.zeros(METADATA, dtype=torch.int32)


@kernel
def npu_vllm_quant_lightning_indexer_metadata(*arguments: Any, **words: Any) -> Tensor:
    return torch.zeros(METADATA, dtype=torch.int32)


@kernel
def npu_vllm_quant_lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    query_dequant_scale: Tensor,
    key_dequant_scale: Tensor,
    query_quant_mode: int = 0,
    key_quant_mode: int = 0,
    **words: Any,
) -> tuple[Tensor, Tensor]:
    """The best entries of each token [T, 1, sparse_count], -1 behind them: sum over heads of weight * relu(q . k)."""
    _require(query.shape[1:] == (64, 128) and query.dtype == key.dtype, "q is [T, 64, 128] in the keys' dtype")
    _require(key.dim() == 4 and key.shape[1] % 16 == 0 and key.shape[2] == 1, "pages are [blocks, 16 n, 1, 128]")
    half = torch.float16 if query.dtype == torch.int8 else torch.float32
    scales = (weights.dtype, query_dequant_scale.dtype, key_dequant_scale.dtype)
    _require(scales == (half,) * 3, f"weights and scales are {half}, not {scales}")
    _require(words.get("metadata") is not None, "metadata is int32 [1024]")
    _require(words["sparse_mode"] == 3 and words["layout_query"] == "TND", "sparse_mode is 3, layouts TND and PA_BSND")
    count, ratio = words["sparse_count"], words["cmp_ratio"]
    ends, used = words["actual_seq_lengths_query"].tolist(), words["actual_seq_lengths_key"].tolist()
    out = torch.full((len(query), 1, count), -1, dtype=torch.int32)
    begin = 0
    for request, (stop, end) in enumerate(zip(ends, used, strict=True)):
        at, entries = slice(begin, stop), end // ratio
        begin = stop
        table = words["block_table"][request]
        if not entries or at.start == at.stop:
            continue
        keys = _rows(key, table, entries).flatten(1).float()
        keys = keys * _rows(key_dequant_scale, table, entries).flatten().float().unsqueeze(1)
        q = query[at].float() * query_dequant_scale[at].float().view(-1, 64, 1)
        scores = torch.einsum("the,th->te", torch.relu(q @ keys.T), weights[at].float())
        visible = (torch.arange(end - len(q), end) + 1) // ratio
        hidden = torch.arange(entries) >= visible.unsqueeze(1)
        best = scores.masked_fill(hidden, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :count]
        out[at, 0, : best.shape[1]] = best.where(best < visible.unsqueeze(1), -1).int()
    return out, torch.empty(0)
