"""`attn.attend` without `lse`, with FlashInfer's DeepSeek-V4 decoding on chips of the sm120 family.

It reads the same 584-byte rows as FlashMLA, in place. On sm100 its cubins want other pages and are not used. Its `lse`
is not returned and has the sink in it. Source: FlashInfer 0.7.2, `flashinfer/mla/_core.py`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hal_cuda.adapters import probe
from hal_cuda.adapters.lists import entries, records, window_rows

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

__all__ = ["attend", "attend_selected"]

CALL = "trtllm_batch_decode_sparse_mla_dsv4"
HEADS = (8, 16, 32, 64, 128)
LIST = 64
"""Lists are a multiple of it."""
WORKSPACE = 128 << 20
"""Bytes for partial sums; where a step needs more, FlashInfer allocates them."""


def attend(
    q: Tensor,
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    sink: Tensor | None,
    batch: Batch,
    *,
    scale: float,
    window_size: int,
    ratio: int,
    selected: bool = False,
) -> tuple[Tensor, None]:
    """`attn.attend` without `lse`: q[tokens, heads, 512] bfloat16, heads padded to 8, 16, 32, 64 or 128.

    `selected` promises rows as `attn.select` returns them: lists are read only as far as they are filled.
    """
    tokens, heads, _ = q.shape
    if not tokens:
        return torch.empty_like(q), None
    near, near_lengths = window_rows(batch, window, window_size, LIST)
    extra: dict[str, Any] = {}
    far, lengths = entries(batch, compressed, rows, ratio, LIST, selected)
    if far is not None and compressed is not None:
        extra = {
            "compressed_kv_cache": records(compressed),
            "extra_sparse_indices": far,
            "extra_sparse_topk_lens": near_lengths.new_full((tokens,), far.shape[1]) if lengths is None else lengths,
        }
    spare = next(size for size in HEADS if size >= heads) - heads
    if spare:
        q, sink = F.pad(q, (0, 0, 0, spare)), None if sink is None else F.pad(sink, (0, spare))
    out: Tensor = probe.function("flashinfer", CALL)(
        query=q.contiguous(),
        swa_kv_cache=records(window),
        workspace_buffer=_workspace(q.device),
        sparse_indices=near,
        swa_topk_lens=near_lengths,
        bmm1_scale=scale,
        sinks=None if sink is None else sink.float().contiguous(),
        kv_layout="NHD",
        backend="sparse",
        kv_cache_format="fp8",
        **extra,
    )
    return out[:, :heads], None


def attend_selected(*arguments: Any, **attributes: Any) -> tuple[Tensor, None]:
    """`attend` with `selected`."""
    return attend(*arguments, selected=True, **attributes)


@cache
def _workspace(device: torch.device) -> Tensor:
    """One per device, used by one layer after the other."""
    return torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
