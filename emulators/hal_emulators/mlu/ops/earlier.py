"""Operators as earlier builds publish them: 1.8 (vllm-mlu's DeepSeek-V4) and 1.5 (dlinfer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hal_emulators.mlu.ops import attention, connections, products, quantization, routing, sparse
from hal_emulators.mlu.ops.check import INT32, CallError, Checks, operator, require

__all__ = ["EIGHT", "FIVE"]


def _attention_8(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    k_cache_quant_scale: Tensor | None,
    v_cache_quant_scale: Tensor | None,
    alibi_slopes: Tensor | None,
    max_contxt_len: int,
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
    learnable_sink: Tensor | None = None,
) -> Any:
    """The sink is called `learnable_sink`, the longest context `max_contxt_len`."""
    return attention.single_query_cached_kv_attn(
        q, k_cache, v_cache, out, block_tables, context_lens, k_cache_quant_scale, v_cache_quant_scale, alibi_slopes,
        max_contxt_len, windows_size_left, windows_size_right, softmax_scale, return_lse, kv_cache_quant_bit_size,
        q_quant_scale, out_quant_scale, out_dtype, compute_dtype, head_size_v, sink=learnable_sink,
    )  # fmt: skip


@operator
def _indexer_8(
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
    kv_cache_block_table_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Context lengths are keys, after compression; the operator knows no ratio."""
    check = Checks("masked_indexer_select_paged_kv")
    sparse._reserved(check, is_prefill, cu_seq_q_lens, cu_seq_k_lens, q_scale, k_scale_cache, kv_cache_block_size)
    check("k_context_lens", k_context_lens, INT32, "batch")
    table, lens = sparse._results(len(query), index_topk, sparse_block_table, sparse_context_lens)
    sparse._decode(
        check, query, k_cache, weights, kv_cache_block_table, k_context_lens.tolist(), k_cache_block_table, index_topk,
        softmax_scale, table, lens, kv_cache_block_table_offset,
    )  # fmt: skip
    return table, lens


def _active_8(
    input: Tensor,
    act_mode: str,
    is_gated: bool,
    output: Tensor | None = None,
    bias: Tensor | None = None,
    cusum_token_count: Tensor | None = None,
    start_expert_id: int = 0,
    expert_size: int = 0,
) -> Tensor:
    """Without a clamp."""
    return routing.moe_active(input, act_mode, is_gated, output, bias, cusum_token_count, start_expert_id, expert_size)


def _mhc_post_8(
    x: Tensor,
    residual: Tensor,
    post: Tensor,
    comb: Tensor,
    compute_rms: bool,
    eps: float,
    output: Tensor | None = None,
    output_rms: Tensor | None = None,
) -> Tensor:
    """Only for the published Flash model's 4096 channels."""
    require(x.shape[-1] == 4096, f"torch_mlu_ops.fused_mhc_post: dim is {x.shape[-1]}, wanted 4096")
    return connections.fused_mhc_post(x, residual, post, comb, compute_rms, eps, output, output_rms)


@operator
def _compress_multi_8(
    kv: Tensor,
    score: Tensor,
    kv_state: Tensor,
    score_state: Tensor,
    cu_seqlens: Tensor,
    batch_ids: Tensor,
    ape: Tensor,
    max_seqlen: int,
    overlap: bool,
    compressed_kv: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """State by request and not by page. Only the signature is emulated, by which a backend tells the forms apart."""
    raise CallError("torch_mlu_ops.fused_compress_multi_kv: the form of 1.8, with kv_state, is not emulated")


@operator
def _compress_single_8(
    kv: Tensor,
    score: Tensor,
    position: Tensor,
    state_ids: Tensor,
    ape: Tensor,
    kv_state: Tensor,
    score_state: Tensor,
    gamma: Tensor,
    sin: Tensor,
    cos: Tensor,
    hadamard_matrix: Tensor | None,
    slot_mapping: Tensor,
    kv_cache: Tensor,
    kv_cache_scale: Tensor | None,
    eps: float,
    overlap: bool,
    cu_query_len: Tensor,
    mtp_token_num: int,
) -> tuple[Tensor, Tensor]:
    """As `_compress_multi_8`."""
    raise CallError("torch_mlu_ops.fused_compress_single_kv: the form of 1.8, with kv_state, is not emulated")


def _quantize_8(
    x: Tensor,
    smooth: Tensor,
    zero: Tensor | None = None,
    token_count: Tensor | None = None,
    gather_index: Tensor | None = None,
    gather_index_start_position: Tensor | None = None,
    output: Tensor | None = None,
    output_scale: Tensor | None = None,
    dynamic_quant: bool = True,
    act_mode: str = "none",
    active_coef: float = 1.0,
    is_gated: bool = False,
    quant_type: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor]:
    return quantization.moe_quantize(
        x, smooth, zero, token_count, gather_index, gather_index_start_position, output, output_scale, dynamic_quant,
        act_mode, active_coef, is_gated, quant_type,
    )  # fmt: skip


def _attention_5(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    k_cache_quant_scale: Tensor | None,
    v_cache_quant_scale: Tensor | None,
    alibi_slopes: Tensor | None,
    max_contxt_len: int,
    windows_size_left: int,
    windows_size_right: int,
    softmax_scale: float,
    return_lse: bool = False,
) -> Any:
    """No sink; the result has the dtype of q."""
    return attention.single_query_cached_kv_attn(
        q, k_cache, v_cache, out, block_tables, context_lens, k_cache_quant_scale, v_cache_quant_scale, alibi_slopes,
        max_contxt_len, windows_size_left, windows_size_right, softmax_scale, return_lse, out_dtype=q.dtype,
    )  # fmt: skip


def _per_token_smooth_quantize(
    x: Tensor, smooth: Tensor, zero: Tensor | None = None, token_count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `scaled_quantize` is called before it."""
    return quantization.scaled_quantize(x, smooth)


def _smooth_quant_matmul(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    c: Tensor | None = None,
    act_mode: str = "none",
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """What `scaled_matmul` is called before it: each scale beside its codes."""
    return products.scaled_matmul(a, b, a_scale, b_scale, dtype, bias, c, act_mode, 8, alpha, beta)


EIGHT = {
    "single_query_cached_kv_attn": _attention_8,
    "masked_indexer_select_paged_kv": _indexer_8,
    "fused_compress_multi_kv": _compress_multi_8,
    "fused_compress_single_kv": _compress_single_8,
    "fused_mhc_post": _mhc_post_8,
    "moe_active": _active_8,
    "moe_quantize": _quantize_8,
}
"""What 1.8 publishes in another form than 1.12.1."""

FIVE = {
    "single_query_cached_kv_attn": _attention_5,
    "moe_active": _active_8,
    "moe_quantize": _quantize_8,
    "per_token_smooth_quantize": _per_token_smooth_quantize,
    "smooth_quant_matmul": _smooth_quant_matmul,
}
"""What 1.5 publishes in another form, or under another name."""
