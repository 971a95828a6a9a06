"""FlashMLA of DeepSeek-V3.2: one cache, schedules made in advance. Its signatures are read; a call is a mistake."""

from __future__ import annotations

from typing import Any


def get_mla_metadata(cache_seqlens: Any, num_q_tokens_per_head_k: int, num_heads_k: int, *args: Any) -> Any:
    raise NotImplementedError


def flash_mla_with_kvcache(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    tile_scheduler_metadata: Any,
    num_splits: Any,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Any = None,
) -> Any:
    raise NotImplementedError
