"""FlashMLA since 2026.09.30, which no longer reads rows of DeepSeek-V4."""

from __future__ import annotations

from typing import Any


def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[Any, None]:
    return object(), None


def flash_mla_with_kvcache(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    tile_scheduler_metadata: Any,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = True,
    indices: Any = None,
    attn_sink: Any = None,
    extra_k_cache: Any = None,
    extra_indices_in_kvcache: Any = None,
    topk_length: Any = None,
    extra_topk_length: Any = None,
    enable_batch_invariant: bool = False,
) -> Any:
    raise AssertionError("rows of 528 or 288 bytes")
