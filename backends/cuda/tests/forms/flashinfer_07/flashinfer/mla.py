"""FlashInfer 0.7.2: the signature of its DeepSeek-V4 decoding, and what its packed backend of sm120 refuses."""

from __future__ import annotations

from typing import Any

import torch
from flashinfer_ops import run, want
from torch import Tensor


def trtllm_batch_decode_sparse_mla_dsv4(
    query: Tensor,
    swa_kv_cache: Tensor,
    workspace_buffer: Tensor,
    sparse_indices: Tensor | None = None,
    compressed_kv_cache: Tensor | None = None,
    sparse_topk_lens: Tensor | None = None,
    seq_lens: Tensor | None = None,
    out: Tensor | None = None,
    bmm1_scale: float | Tensor = 1.0,
    bmm2_scale: float | Tensor = 1.0,
    sinks: Tensor | None = None,
    kv_layout: str = "HND",
    cum_seq_lens_q: Tensor | None = None,
    max_q_len: int | None = None,
    enable_pdl: bool | None = None,
    swa_topk_lens: Tensor | None = None,
    extra_sparse_indices: Tensor | None = None,
    extra_sparse_topk_lens: Tensor | None = None,
    backend: str = "auto",
    hca_swa_indices: Tensor | None = None,
    hca_compressed_block_tables: Tensor | None = None,
    hca_seq_lens: Tensor | None = None,
    hca_is_causal: bool = True,
    hca_use_persistent: bool = False,
    hca_sparse_indices_format: str | None = None,
    remapped_sparse_indices_buffer: Tensor | None = None,
    sparse_indices_are_storage_offsets: bool | None = None,
    dsv4_inv_rope_cos_sin_cache: Tensor | None = None,
    dsv4_output_scale: Tensor | None = None,
    sparse_topk_lens_offset: int = 0,
    multi_ctas_kv_counter_buffer: Tensor | None = None,
    *,
    kv_cache_format: str = "fp8",
) -> Any:
    want(backend in ("auto", "sparse") and kv_cache_format == "fp8", f"{backend} over {kv_cache_format} here")
    want(not isinstance(bmm1_scale, Tensor) and bmm2_scale == 1.0, "scales as tensors")
    want(workspace_buffer.dtype == torch.uint8, "workspace")
    want(sparse_topk_lens is None and seq_lens is None, "lengths of the other backend")
    want((extra_sparse_indices is None) == (extra_sparse_topk_lens is None), "half of an extra list")
    if kv_layout == "HND":
        swa_kv_cache = swa_kv_cache.transpose(1, 2)
        compressed_kv_cache = None if compressed_kv_cache is None else compressed_kv_cache.transpose(1, 2)
    lists = [(swa_kv_cache, sparse_indices, swa_topk_lens)]
    if extra_sparse_indices is not None:
        lists.append((compressed_kv_cache, extra_sparse_indices, extra_sparse_topk_lens))
    made = run(query, lists, sinks, float(bmm1_scale))
    return made if out is None else out.copy_(made)
