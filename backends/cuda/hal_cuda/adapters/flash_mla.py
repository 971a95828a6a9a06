"""`attn.attend` with FlashMLA's sparse decoding over 584-byte rows, which it reads in place.

Every token is a request of one query, so prefill, decode and mixed batches are one call. Source: FlashMLA,
`flash_mla/flash_mla_interface.py` and `csrc/api/sparse_decode.h`.
"""

from __future__ import annotations

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

CALL = "flash_mla_with_kvcache"
LIST = 128
"""Lists are a multiple of it: two tiles of 64 rows on Hopper, one of 128 on Blackwell."""
PIECE = 8192
"""Tokens of one call: the scheduler keeps 20 bytes per token in shared memory."""


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
) -> tuple[Tensor, Tensor]:
    """`attn.attend`: q[tokens, heads, 512] bfloat16, heads up to 128, padded to 64 or 128 where they are fewer.

    `selected` promises rows as `attn.select` returns them: lists are read only as far as they are filled.
    """
    tokens, heads, _ = q.shape
    if not tokens:
        return torch.empty_like(q), torch.empty(0, heads, device=q.device)
    near, near_lengths = window_rows(batch, window, window_size, LIST)
    far, far_lengths = entries(batch, compressed, rows, ratio, LIST, selected)
    spare = (64 if heads <= 64 else 128) - heads
    q, sink = (F.pad(q, (0, 0, 0, spare)), sink if sink is None else F.pad(sink, (0, spare))) if spare else (q, sink)
    q, sink = q.contiguous(), sink if sink is None else sink.float().contiguous()
    shape = (q.shape[1], near.shape[1], None if far is None else far.shape[1], ratio, rows is None, selected)
    done = []
    for low in range(0, tokens, PIECE):
        part = slice(low, low + PIECE)
        schedule = batch.derive(("cuda", "FlashMLA schedule", low, shape, window_size), _schedule)
        extra: dict[str, Any] = {}
        if far is not None and compressed is not None:
            extra["extra_k_cache"] = records(compressed)
            extra["extra_indices_in_kvcache"] = far[part].unsqueeze(1)
            extra["extra_topk_length"] = None if far_lengths is None else far_lengths[part]
        done.append(
            probe.function("flash_mla", CALL)(
                q=q[part].unsqueeze(1),
                k_cache=records(window),
                block_table=None,
                cache_seqlens=None,
                head_dim_v=q.shape[2],
                tile_scheduler_metadata=schedule,
                softmax_scale=scale,
                is_fp8_kvcache=True,
                indices=near[part].unsqueeze(1),
                attn_sink=sink,
                topk_length=near_lengths[part],
                **extra,
                **form(),
            )
        )
    out, lse = (torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*done, strict=True))
    return out[:, 0, :heads], lse[:, :heads, 0]


def attend_selected(*arguments: Any, **attributes: Any) -> tuple[Tensor, Tensor]:
    """`attend` with `selected`."""
    return attend(*arguments, selected=True, **attributes)


def form() -> dict[str, Any]:
    """What this FlashMLA must be told beside the arguments that all of them take."""
    return {"use_legacy": True, "kv_format": "V4"} if "use_legacy" in probe.parameters("flash_mla", CALL) else {}


def _schedule() -> Any:
    return probe.function("flash_mla", "get_mla_metadata")()[0]
