"""sgl-flash-mla 1.0.0: two sets of kernels, of which the older one reads rows of DeepSeek-V4."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass
class FlashMLASchedMeta:
    tile_scheduler_metadata: Tensor | None = None
    num_splits: Tensor | None = None


def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[FlashMLASchedMeta, None]:
    return FlashMLASchedMeta(), None


def has_legacy() -> bool:
    return True


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
    is_fp8_kvcache: bool | None = None,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
    enable_batch_invariant: bool = False,
    use_legacy: bool = False,
    kv_format: str | None = None,
    descale_q: Tensor | None = None,
    descale_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    meta = tile_scheduler_metadata
    assert not causal
    assert is_fp8_kvcache is not False
    assert use_legacy or kv_format is None, "kv_format only applies to the legacy kernels"
    space = torch.ops.flash_mla_legacy if use_legacy else torch.ops.flash_mla
    out, lse, meta.tile_scheduler_metadata, meta.num_splits = space.sparse_decode_fwd(
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
        softmax_scale,
        kv_format if use_legacy else enable_batch_invariant,
    )
    return out, lse
