"""Attention over paged caches, one shared key-value head: `single_query_cached_kv_attn` and its relatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import FLOATS, HALVES, INT32, Checks, operator

F32 = (torch.float32,)
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64)
GROUP = 256  # most query rows that meet one key head of a bfloat16 cache


def _listed(check: Checks, name: str, cache: Tensor, table: Tensor, length: int) -> Tensor:
    """The first `length` rows of a block table: [length, channels] float32."""
    size = cache.shape[2]
    blocks = -(-length // size)
    check.that(blocks <= len(table), f"{name}: {length} rows do not fit {len(table)} blocks of {size}")
    check.indices(name, table[:blocks], 0, len(cache))
    return cache[table[:blocks].long(), 0].flatten(0, 1)[:length].float()


def _softmax(q: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [heads, channels] over keys [n, channels]: sums of values and weights, relative to the largest logit."""
    logits = q.float() @ keys.T * scale
    top = logits.amax(-1, keepdim=True)
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    return weights @ keys / total, (top + torch.log(total)).squeeze(-1)


def _cache(check: Checks, name: str, cache: Tensor) -> None:
    check(name, cache, HALVES, "_ 1 _ channels")
    check.that(
        cache.shape[2] in BLOCK_SIZES, f"{name} has blocks of {cache.shape[2]} rows, wanted one of {BLOCK_SIZES}"
    )


def _lengths(check: Checks, name: str, lengths: Tensor, most: int) -> None:
    check(name, lengths, INT32, "batch")
    check.indices(name, lengths, 0, most + 1)


@operator
def single_query_cached_kv_attn(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    k_cache_quant_scale: Tensor | None,
    v_cache_quant_scale: Tensor | None,
    alibi_slopes: Tensor | None,
    max_context_len: int,
    windows_size_left: int,
    windows_size_right: int,
    softmax_scale: float,
    return_lse: bool = False,
    kv_cache_quant_bit_size: int = -1,
    q_quant_scale: Tensor | None = None,
    out_quant_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.half,
    compute_dtype: torch.dtype = torch.float,
    head_size_v: int = -1,
    mask: Tensor | None = None,
    cu_seq_q: Tensor | None = None,
    max_seq_q: int = -1,
    sink: Tensor | None = None,
) -> Any:
    """Context lengths of 0 are not documented: such rows come out as NaN here."""
    check = Checks("single_query_cached_kv_attn")
    check("q", q, HALVES, "batch queries heads channels")
    _cache(check, "k_cache", k_cache)
    check("out", out, (out_dtype,), "batch queries heads channels")
    check("block_tables", block_tables, INT32, "batch _")
    _lengths(check, "context_lens", context_lens, max_context_len)
    check("sink", sink, F32, "heads")
    check.absent(k_cache_quant_scale=k_cache_quant_scale, v_cache_quant_scale=v_cache_quant_scale, mask=mask)
    check.absent(
        alibi_slopes=alibi_slopes, q_quant_scale=q_quant_scale, out_quant_scale=out_quant_scale, cu_seq_q=cu_seq_q
    )
    check.that(v_cache is None, "values are the keys here: v_cache must be None, head_size_v the width of a row")
    check.that(head_size_v in (-1, q.shape[-1]), f"head_size_v is {head_size_v}")
    check.that(q.shape[1] == 1, "one query per row is emulated")
    check.that(q.dtype == k_cache.dtype, f"q is {q.dtype}, k_cache {k_cache.dtype}")
    check.that(
        q.shape[1] * q.shape[2] <= GROUP, f"{q.shape[1] * q.shape[2]} query rows meet one key head, at most {GROUP}"
    )
    check.that((windows_size_left, windows_size_right) == (-1, -1), "windows are not emulated")
    check.that(out.data_ptr() != q.data_ptr() or not q.numel(), "out must not be q")
    lse = torch.full((q.shape[0], q.shape[2], 1), torch.nan)
    for row, length in enumerate(context_lens.tolist()):
        if not length:
            out[row] = torch.nan
            continue
        made, found = _softmax(
            q[row, 0], _listed(check, "block_tables", k_cache, block_tables[row], length), softmax_scale
        )
        if sink is not None:
            total = torch.logaddexp(found, sink)
            made, found = made * torch.exp(found - total)[:, None], total
        out[row, 0], lse[row, :, 0] = made.to(out.dtype), found
    return (out, lse) if return_lse else out


@operator
def sliding_window_compress_attention(
    q: Tensor,
    cache_swa: Tensor,
    cache_comp: Tensor | None,
    out: Tensor,
    block_tables_swa: Tensor,
    block_tables_comp: Tensor | None,
    cu_seq_q: Tensor,
    context_lens_swa: Tensor,
    context_lens_comp: Tensor | None,
    q_quant_scale: Tensor | None,
    cache_quant_scale_swa: Tensor | None,
    cache_quant_scale_comp: Tensor | None,
    out_quant_scale: Tensor | None,
    sink: Tensor | None,
    softmax_scale: float,
    max_contxt_len_swa: int,
    max_contxt_len_comp: int,
    max_seq_q: int = -1,
    head_size_out: int = -1,
    return_lse: bool = False,
    kv_cache_quant_bit_size: int = -1,
    out_dtype: torch.dtype = torch.half,
    compute_dtype: torch.dtype = torch.float,
) -> Any:
    check = Checks("sliding_window_compress_attention")
    check("q", q, HALVES, "tokens heads channels")
    check("out", out, (out_dtype,), "tokens heads channels")
    check("block_tables_swa", block_tables_swa, INT32, "batch _")
    check("block_tables_comp", block_tables_comp, INT32, "batch _")
    check("sink", sink, F32, "heads")
    check.sizes["ends"] = check.sizes["batch"] + 1
    check("cu_seq_q", cu_seq_q, INT32, "ends")
    check.absent(q_quant_scale=q_quant_scale, out_quant_scale=out_quant_scale)
    check.absent(cache_quant_scale_swa=cache_quant_scale_swa, cache_quant_scale_comp=cache_quant_scale_comp)
    check.that(not return_lse, "whether lse holds the sink is not documented: not emulated")
    check.that(cu_seq_q.tolist() == list(range(len(q) + 1)), "one query per row is emulated: cu_seq_q counts up by one")
    check.that(out.data_ptr() != q.data_ptr() or not q.numel(), "out must not be q")
    parts = [("swa", cache_swa, block_tables_swa, context_lens_swa, max_contxt_len_swa)]
    if cache_comp is not None and block_tables_comp is not None and context_lens_comp is not None:
        parts.append(("comp", cache_comp, block_tables_comp, context_lens_comp, max_contxt_len_comp))
    for name, cache, _, lengths, most in parts:
        _cache(check, f"cache_{name}", cache)
        check.that(cache.dtype == q.dtype, f"q is {q.dtype}, cache_{name} {cache.dtype}")
        _lengths(check, f"context_lens_{name}", lengths, most)
    check.that(int(context_lens_swa.min()) > 0 if len(q) else True, "context_lens_swa holds 0: a query sees itself")
    for row in range(len(q)):
        listed = [
            _listed(check, f"block_tables_{name}", cache, table[row], int(lengths[row]))
            for name, cache, table, lengths, _ in parts
        ]
        made, lse = _softmax(q[row], torch.cat(listed), softmax_scale)
        if sink is not None:
            made = made * torch.sigmoid(lse - sink)[:, None]
        out[row] = made.to(out.dtype)
    return out


@operator
def update_out_and_lse(
    out: Tensor,
    lse: Tensor,
    block_out: Tensor,
    block_lse: Tensor,
    seq_offsets: Tensor | None = None,
    cu_seqs: Tensor | None = None,
    block_cu_seqs: Tensor | None = None,
) -> None:
    check = Checks("update_out_and_lse")
    check("out", out, FLOATS, "batch queries heads channels")
    check("block_out", block_out, (out.dtype,), "batch queries heads channels")
    check("lse", lse, F32, "batch heads queries")
    check("block_lse", block_lse, F32, "batch heads queries")
    check.absent(seq_offsets=seq_offsets, cu_seqs=cu_seqs, block_cu_seqs=block_cu_seqs)
    share = torch.sigmoid(block_lse - lse).transpose(1, 2).unsqueeze(-1)
    out.copy_(out.float() - share * (out.float() - block_out.float()))
    lse.sub_(torch.nn.functional.logsigmoid(lse - block_lse))


@operator
def concat_block_table(
    first_block_table: Tensor,
    first_context_lens: Tensor,
    second_block_table: Tensor,
    second_context_lens: Tensor,
    new_block_table: Tensor | None = None,
    new_context_lens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check = Checks("concat_block_table")
    check("first_block_table", first_block_table, INT32, "batch first")
    check("second_block_table", second_block_table, INT32, "batch second")
    check("first_context_lens", first_context_lens, INT32, "batch")
    check("second_context_lens", second_context_lens, INT32, "batch")
    check.sizes["both"] = check.sizes["first"] + check.sizes["second"]
    check("new_block_table", new_block_table, INT32, "batch both")
    check("new_context_lens", new_context_lens, INT32, "batch")
    if new_block_table is None:
        new_block_table = torch.full((check.sizes["batch"], check.sizes["both"]), -1, dtype=torch.int32)
    lengths = first_context_lens + second_context_lens
    for row, (begin, end) in enumerate(zip(first_context_lens.tolist(), lengths.tolist(), strict=True)):
        new_block_table[row, :begin] = first_block_table[row, :begin]
        new_block_table[row, begin:end] = second_block_table[row, : end - begin]
    return new_block_table, lengths if new_context_lens is None else new_context_lens.copy_(lengths)
