"""FlashInfer 0.7.2: the signature of its DeepSeek-V4 decoding, and what its packed backend of sm120 refuses."""

from __future__ import annotations

from typing import Any

import torch
from flash_mla_ops import attention
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
    _want(backend in ("auto", "sparse") and kv_cache_format == "fp8", f"{backend} over {kv_cache_format} here")
    _want(not isinstance(bmm1_scale, Tensor) and bmm2_scale == 1.0, "scales as tensors")
    _want(query.dtype == torch.bfloat16 and query.ndim == 3 and query.shape[2] == 512, f"query {query.dtype}")
    tokens, heads, _ = query.shape
    _want(heads in (8, 16, 32, 64, 128), f"{heads} heads")
    _want(workspace_buffer.dtype == torch.uint8, "workspace")
    _want(sparse_topk_lens is None and seq_lens is None, "lengths of the other backend")
    _want((extra_sparse_indices is None) == (extra_sparse_topk_lens is None), "half of an extra list")
    if sinks is not None:
        _want(sinks.dtype == torch.float32 and sinks.shape == (heads,) and sinks.is_contiguous(), "sinks")
    lists = [_segment(swa_kv_cache, sparse_indices, swa_topk_lens, kv_layout, tokens)]
    if extra_sparse_indices is not None:
        _want(compressed_kv_cache is not None, "an extra list without its cache")
        lists.append(_segment(compressed_kv_cache, extra_sparse_indices, extra_sparse_topk_lens, kv_layout, tokens))
    made = attention(query.unsqueeze(1), lists, sinks, float(bmm1_scale))[0].squeeze(1)
    return made if out is None else out.copy_(made)


def _segment(
    pages: Tensor | None, rows: Tensor | None, lengths: Tensor | None, kv_layout: str, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A packed cache, its list and the lengths, in the forms that are accepted."""
    assert pages is not None
    assert rows is not None
    assert lengths is not None
    _want(pages.dtype == torch.uint8 and pages.shape[-1] == 584, f"pages {pages.dtype} {tuple(pages.shape)}")
    _want(pages.ndim == 4 and pages.shape[2 if kv_layout == "NHD" else 1] == 1, f"pages {tuple(pages.shape)}")
    pages = pages if kv_layout == "NHD" else pages.transpose(1, 2)
    packed = pages.stride(1) == 584 and pages.stride(3) == 1
    _want(packed and pages.data_ptr() % 16 == 0 and pages.stride(0) % 16 == 0, f"pages with strides {pages.stride()}")
    _want(rows.dtype == torch.int32 and rows.ndim == 2 and len(rows) == tokens, f"a list of {rows.dtype}")
    _want(rows.shape[1] > 0 and rows.shape[1] % 64 == 0 and rows.stride(1) == 1, f"a list of {rows.shape[1]}")
    _want(lengths.dtype == torch.int32 and lengths.shape == (tokens,), f"lengths {lengths.dtype}")
    _want(bool((lengths <= rows.shape[1]).all()), "a length beyond the list")
    _want(bool((rows >= -1).all() and (rows < pages.shape[0] * pages.shape[1]).all()), "an index beyond the cache")
    return pages, rows.unsqueeze(1), lengths


def _want(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"FlashInfer refuses {what}")
