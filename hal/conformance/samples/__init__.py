"""Arguments for every contract, made from sizes and a seed: V4 shapes scaled down, ragged batches, every edge."""

from __future__ import annotations

from collections.abc import Iterator

from hal.conformance.samples.sample import Sample

__all__ = ["Sample", "samples"]


def samples(contract: str) -> Iterator[Sample]:
    """All samples of a contract, in a fixed order."""
    from hal.conformance.samples import attention, compression, experts, matmul, mhc

    makers = {
        "attn.attend": attention.attend,
        "attn.index_scores": attention.index_scores,
        "attn.select": attention.select,
        "attn.store": compression.store,
        "attn.compress_pool": compression.compress_pool,
        "attn.compress": compression.compress,
        "moe.route": experts.route,
        "moe.dispatch": experts.dispatch,
        "moe.experts": experts.experts,
        "moe.combine": experts.combine,
        "moe.ffn": experts.ffn,
        "quant.quantize": matmul.quantize,
        "quant.matmul": matmul.matmul,
        "mhc.pre": mhc.pre,
        "mhc.post": mhc.post,
    }
    return makers[contract]()
