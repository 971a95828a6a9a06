"""`attn.attend` with vllm-ascend's attention over shared keys and values: bf16 rows on A3, 640-byte rows on the 950."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hal_ascend.steps import ends, table

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

TILE, ROPE = 64, 64
ROW = 640


def attend_bf16(
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
) -> tuple[Tensor, None]:
    """`attn.attend` without `lse`: pages of bf16 rows, q[tokens, 64, 512]."""
    operators = torch.ops._C_ascend
    call, plan = operators.npu_sparse_attn_sharedkv, operators.npu_sparse_attn_sharedkv_metadata
    return _attend(call, plan, (), q, window, compressed, rows, sink, batch, scale, window_size, ratio), None


def attend_packed(
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
) -> tuple[Tensor, None]:
    """`attn.attend` without `lse`: pages of `v4_640` rows, q[tokens, 64 or 128, 512]."""
    operators = torch.ops._C_ascend
    call, plan = operators.npu_kv_quant_sparse_attn_sharedkv, operators.npu_kv_quant_sparse_attn_sharedkv_metadata
    return _attend(call, plan, (1,), q, window, compressed, rows, sink, batch, scale, window_size, ratio), None


def _attend(
    call: Any,
    plan: Any,
    mode: tuple[int, ...],
    q: Tensor,
    window: KVCache,
    compressed: KVCache | None,
    rows: Tensor | None,
    sink: Tensor | None,
    batch: Batch,
    scale: float,
    window_size: int,
    ratio: int,
) -> Tensor:
    if not len(q):
        return torch.empty_like(q)
    sparse = compressed is not None and (rows is not None or ratio > 0)
    case: dict[str, Any] = {"cu_seqlens_q": batch.cu_seqlens, "seqused_kv": ends(batch)}
    shape: dict[str, Any] = {"ori_win_left": window_size - 1, "layout_q": "TND", "layout_kv": "PA_ND"}
    if mode:
        shape |= {"tile_size": TILE, "rope_head_dim": ROPE}
    if sparse:
        shape["cmp_ratio"] = ratio
    selected = 0 if rows is None else rows.shape[1]
    metadata = batch.derive(
        ("ascend", "attention schedule", q.shape[1], sparse, selected, tuple(shape.items())),
        lambda: plan(
            q.shape[1],
            1,
            q.shape[2],
            *mode,
            **case,
            **shape,
            batch_size=batch.requests,
            max_seqlen_q=max(batch.lengths),
            max_seqlen_kv=max(start + length for start, length in zip(batch.starts, batch.lengths, strict=True)),
            cmp_topk=selected,
            has_cmp_kv=sparse,
        ),
    )
    out, _ = call(
        q,
        *mode,
        ori_kv=_pages(window),
        cmp_kv=_pages(compressed) if sparse and compressed is not None else None,
        cmp_sparse_indices=None if rows is None else rows.unsqueeze(1),
        ori_block_table=table(batch, window),
        cmp_block_table=table(batch, compressed) if sparse and compressed is not None else None,
        sinks=sink,
        metadata=metadata,
        softmax_scale=scale,
        **case,
        **shape,
    )
    return out


def _pages(cache: KVCache) -> Tensor:
    """[blocks, rows, 1, row]: a page's rows with one head. The operators take no strides."""
    pages, rows = cache.pages.contiguous(), cache.layout.block_size
    return pages.view(len(pages), rows, 1, ROW) if pages.dtype == torch.uint8 else pages.unsqueeze(2)
