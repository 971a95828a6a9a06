"""FlashMLA as vLLM 0.33.0 vendors it: an output can be given, and batch invariance asked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from torch import Tensor

_FILE = Path(__file__).parents[4] / "flash_mla_upstream" / "flash_mla.py"
_SPEC = importlib.util.spec_from_file_location("flash_mla_as_vendored", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_BASE = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _BASE
_SPEC.loader.exec_module(_BASE)
FlashMLASchedMeta, get_mla_metadata = _BASE.FlashMLASchedMeta, _BASE.get_mla_metadata


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,  # type: ignore[valid-type]
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
    out: Tensor | None = None,
    enable_batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    made, lse = _BASE.flash_mla_with_kvcache(
        q,
        k_cache,
        block_table,
        cache_seqlens,
        head_dim_v,
        tile_scheduler_metadata,
        num_splits,
        softmax_scale,
        causal,
        is_fp8_kvcache,
        indices,
        attn_sink,
        extra_k_cache,
        extra_indices_in_kvcache,
        topk_length,
        extra_topk_length,
    )
    return made if out is None else out.copy_(made), lse
