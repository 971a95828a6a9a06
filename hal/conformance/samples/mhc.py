"""Samples of hyper-connections: streams of a trained network's spread, and mixes from flat to nearly a permutation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hal.conformance.samples.sample import Draw, Sample

STREAMS = 4
TOKENS = (0, 1, 7, 64)


def pre() -> Iterator[Sample]:
    """No tokens, one, many; few iterations, where one more or less shows; V4's own widths once."""
    for dtype in ("bfloat16", "float32"):
        for tokens in TOKENS:
            yield pre_sample(tokens, 256, dtype)
    for iterations in (1, 2, 3):
        yield pre_sample(7, 256, "bfloat16", iterations=iterations)
    for hidden in (4096, 7168):
        yield pre_sample(7, hidden, "bfloat16", once=True)


def pre_sample(
    tokens: int, hidden: int, dtype: str, streams: int = STREAMS, iterations: int = 20, once: bool = False
) -> Sample:
    """Streams that differ in size, a projection of unit outputs, and biases that make comb anything but flat."""
    mixes = (2 + streams) * streams

    def make(draw: Draw) -> tuple[Any, ...]:
        x = draw.normal(tokens, streams, hidden) * torch.exp(draw.normal(tokens, streams, 1))
        fn = draw.normal(mixes, streams * hidden, std=(streams * hidden) ** -0.5)
        scale = torch.tensor([1.0, 0.7, 1.5], device=x.device)
        return x.to(getattr(torch, dtype)), fn, scale, draw.normal(mixes, std=2.0)

    return Sample(
        "mhc.pre",
        f"tokens={tokens}/{streams}x{hidden}/{dtype}/iterations={iterations}",
        make,
        sizes={"streams": streams, "hidden": hidden, "mixes": mixes, "features": streams * hidden},
        dtypes={"streams": dtype},
        attributes={"iterations": iterations, "norm_eps": 1e-6, "eps": 1e-6},
        dynamic={"tokens": tokens},
        once=once,
    )


def post() -> Iterator[Sample]:
    """No tokens, one, many; V4's own widths once."""
    for dtype in ("bfloat16", "float32"):
        for tokens in TOKENS:
            yield post_sample(tokens, 256, dtype)
    for hidden in (4096, 7168):
        yield post_sample(7, hidden, "bfloat16", once=True)


def post_sample(tokens: int, hidden: int, dtype: str, streams: int = STREAMS, once: bool = False) -> Sample:
    """A mix that is far from symmetric, so that its transpose shows."""

    def make(draw: Draw) -> tuple[Any, ...]:
        y, x = draw.normal(tokens, hidden, dtype=dtype), draw.normal(tokens, streams, hidden, dtype=dtype)
        comb = (2 * draw.normal(tokens, streams, streams)).softmax(-1)
        return y, x, 2 * torch.sigmoid(draw.normal(tokens, streams)), comb

    return Sample(
        "mhc.post",
        f"tokens={tokens}/{streams}x{hidden}/{dtype}",
        make,
        sizes={"streams": streams, "hidden": hidden},
        dtypes={"y": dtype, "streams": dtype},
        dynamic={"tokens": tokens},
        once=once,
    )
