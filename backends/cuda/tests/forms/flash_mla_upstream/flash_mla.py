"""FlashMLA before 2026.09.30: the signatures of deepseek-ai/FlashMLA 9241ae3."""

from __future__ import annotations

import dataclasses
from typing import Any

from flash_mla_ops import sparse_decode
from torch import Tensor


@dataclasses.dataclass
class FlashMLASchedMeta:
    have_initialized: bool = False
    config: Any = None
    tile_scheduler_metadata: Tensor | None = None
    num_splits: Tensor | None = None


def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[FlashMLASchedMeta, None]:
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    meta = tile_scheduler_metadata
    assert isinstance(meta, FlashMLASchedMeta)
    assert num_splits is None
    assert not causal
    assert is_fp8_kvcache, "is_fp8_kvcache must be True when sparse attention is enabled"
    assert indices is not None
    config = (
        *q.shape[:3],
        *k_cache.shape[1:3],
        indices.shape[-1],
        None if extra_k_cache is None else extra_k_cache.shape[1],
        None if extra_indices_in_kvcache is None else extra_indices_in_kvcache.shape[-1],
    )
    if meta.have_initialized:
        assert meta.config == config, "Your input arguments are inconsistent with sched_meta."
    meta.have_initialized, meta.config = True, config
    out, lse, meta.tile_scheduler_metadata, meta.num_splits = sparse_decode(
        q,
        k_cache,
        indices,
        topk_length,
        attn_sink,
        meta.tile_scheduler_metadata,
        meta.num_splits,
        extra_k_cache,
        extra_indices_in_kvcache,
        extra_topk_length,
        head_dim_v,
        q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale,
    )
    return out, lse
