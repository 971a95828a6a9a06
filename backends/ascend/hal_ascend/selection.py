"""`attn.select` with vllm-ascend's quantised lightning indexer: int8 on A2 and A3, e4m3 on the 950."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hal.formats import hadamard_transform, quantize
from hal.rope import Rope, rotate
from hal_ascend.steps import ends, fields, table

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache

PREFIX = 3  # sparse_mode: a token sees the entries before it


def select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    *,
    top_k: int,
    ratio: int,
    hadamard: bool,
    scale: float,
) -> Tensor:
    """`attn.select`: q[tokens, 64, 128], weights[tokens, 64] -> rows[tokens, top_k] int32, -1 behind the chosen."""
    if not len(q):
        return torch.empty(0, top_k, dtype=torch.int32, device=q.device)
    turned = rotate(q, *batch.derive(("rope", rope), lambda: rope.cos_sin(batch.positions)))
    quantized = quantize(hadamard_transform(turned) if hadamard else turned, cache.layout.index_activation)
    int8 = quantized.codes.dtype == torch.int8
    codes, scales = (torch.int8, torch.float16) if int8 else (torch.float8_e4m3fn, torch.float32)
    keys = fields(cache, {"codes": codes, "scales": scales})
    operators = torch.ops._C_ascend
    words = {
        "actual_seq_lengths_query": batch.derive(("ascend", "query ends"), lambda: batch.cu_seqlens[1:].contiguous()),
        "actual_seq_lengths_key": ends(batch),
        "layout_query": "TND",
        "layout_key": "PA_BSND",
        "sparse_count": top_k,
        "sparse_mode": PREFIX,
        "cmp_ratio": ratio,
    }
    metadata = batch.derive(
        ("ascend", "indexer schedule", top_k, ratio, q.shape[1]),
        lambda: operators.npu_vllm_quant_lightning_indexer_metadata(
            q.shape[1],
            1,
            q.shape[2],
            0,
            0,
            batch_size=batch.requests,
            max_seqlen_q=max(batch.lengths),
            max_seqlen_k=max(start + length for start, length in zip(batch.starts, batch.lengths, strict=True)),
            **words,
        ),
    )
    rows, _ = operators.npu_vllm_quant_lightning_indexer(
        quantized.codes,
        keys["codes"].unsqueeze(2),
        (weights.float() * scale).to(scales),
        quantized.scales.float().squeeze(-1).to(scales),
        keys["scales"],
        block_table=table(batch, cache),
        metadata=metadata,
        **words,
    )
    return rows.squeeze(1)
