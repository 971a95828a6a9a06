"""Calls at DeepSeek-V4-Flash's sizes to time and count: decoding with few tokens, prefill with many.

The values are the conformance suite's, drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Iterator

from hal.bench.scale import V4, Scale
from hal.conformance.samples import Sample, attention, compression, experts, matmul, mhc
from hal.conformance.samples.batches import Requests

__all__ = ["calls"]

FP8, FP4 = ("fp8_block128", "e4m3_128"), ("mxfp4", "e4m3_32")


def calls(scale: Scale = V4) -> Iterator[tuple[str, Sample]]:
    """What is called ("csa decode", ..) and the call, in the order of a layer."""
    for phase, tokens in (("decode", scale.decode), ("prefill", scale.prefill)):
        yield f"streams {phase}", mhc.pre_sample(tokens, scale.hidden, "bfloat16")
        for name, sample in _attention(phase, scale):
            yield f"{name} {phase}", sample
        shape = experts.Shape(scale.hidden, scale.inter, scale.experts)
        yield f"route {phase}", experts.route_sample(tokens, "sqrtsoftplus", "bias", experts=256)
        yield f"dispatch {phase}", experts.dispatch_sample(tokens, FP8[1], "spread", shape=shape)
        for scheme, activation in (FP8, FP4):
            yield f"{scheme} {phase}", experts.experts_sample(tokens, scheme, activation, "spread", shape=shape)
            yield f"{scheme} {phase}", experts.ffn_sample(tokens, scheme, activation, "spread", shape=shape)
        yield f"combine {phase}", experts.combine_sample(tokens, "spread", True, shape=shape)
        yield f"fp8 {phase}", matmul.quantize_sample(tokens, scale.hidden, FP8[1], "bfloat16")
        for scheme, activation in (FP8, FP4, ("bf16", "none")):
            yield (
                f"{scheme} {phase}",
                matmul.matmul_sample(tokens, scale.hidden, scale.hidden, scheme, activation, "bfloat16"),
            )
        yield f"streams {phase}", mhc.post_sample(tokens, scale.hidden, "bfloat16")


def _attention(phase: str, scale: Scale) -> Iterator[tuple[str, Sample]]:
    if phase == "decode":
        # Starts differ so that some requests complete a window and others do not.
        starts = tuple(scale.context - 1 - 128 * request for request in range(scale.decode))
        requests = Requests(phase, (1,) * scale.decode, starts)
    else:
        requests = Requests(phase, (scale.prefill,), (0,))
    for kind, ratio in (("swa", 0), ("hca", 128), ("csa", 4)):
        yield (
            kind,
            attention.attend_sample(kind, ratio, requests, "bfloat16", "v4_584", heads=64, top_k=512, holes="selected"),
        )
    yield "index", attention.select_sample(requests, "bfloat16", "index_mxfp4_68", heads=64, top_k=512)
    yield "index", attention.index_scores_sample(requests, "bfloat16", "index_mxfp4_68", heads=64)
    for kind, ratio, overlap in (("csa", 4, True), ("hca", 128, False)):
        yield (
            kind,
            compression.compress_sample(requests, ratio, overlap, 512, "v4_584", "bfloat16", hidden=scale.hidden),
        )
        yield kind, compression.pool_sample(requests, ratio, overlap, 512)
    yield "window", compression.store_sample(requests.tokens, 512, "v4_584", "bfloat16", norm=False)
