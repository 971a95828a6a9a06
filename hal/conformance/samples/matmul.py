"""Samples of quantised products and of the quantisers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hal.conformance.samples.sample import Draw, Sample
from hal.formats import ACTIVATIONS, prepare

TOKENS = (0, 1, 7, 64)
PAIRS = (
    ("float32", "none"),
    ("bf16", "none"),
    ("fp8_block128", "e4m3_128"),
    ("mxfp4", "e4m3_128"),
    ("mxfp4", "e4m3_32"),
    ("mxfp8", "e4m3_32"),
    ("w8a8_int8", "int8_token"),
    ("w4a8_int", "int8_token"),
    ("w4a8_int_256", "int8_token"),
    ("hif8", "none"),
)
"""Weight schemes with the activation quantisers that are served with them."""


def quantize() -> Iterator[Sample]:
    """Every quantiser: heavy tails, zeros, tiny and huge rows; no rows; features that do not fill a block."""
    for activation in ACTIVATIONS[1:]:
        for tokens in TOKENS:
            yield quantize_sample(tokens, 256, activation, "bfloat16")
        yield quantize_sample(7, 256, activation, "float32")
        yield quantize_sample(7, 96 if activation != "e4m3_128" else 192, activation, "bfloat16")


def quantize_sample(tokens: int, features: int, activation: str, dtype: str) -> Sample:
    """Activations with heavy tails; rows of zeros, tiny and huge ones."""

    def make(draw: Draw) -> tuple[Any, ...]:
        x = draw.heavy(tokens, features, dtype=dtype)
        huge = 1e3 if dtype == "float16" else 1e6
        scales = torch.tensor([1.0, 0.0, 1e-6, huge], device=x.device).repeat(tokens)[:tokens]
        return ((x * scales[:, None]).to(x.dtype),)

    return Sample(
        "quant.quantize",
        f"tokens={tokens}/features={features}/{dtype}/{activation}",
        make,
        sizes={"features": features},
        dtypes={"x": dtype},
        attributes={"activation": activation},
        dynamic={"tokens": tokens},
    )


def matmul() -> Iterator[Sample]:
    """Every scheme with its quantiser; no rows, one row, many; V4's narrow and wide shapes scaled down."""
    for scheme, activation in PAIRS:
        dtype = "float32" if scheme == "float32" else "bfloat16"
        for tokens in TOKENS:
            yield matmul_sample(tokens, 256, 384, scheme, activation, dtype)
        yield matmul_sample(7, 1024, 128, scheme, activation, dtype)
    for features, outputs in ((4096, 512), (7168, 256)):  # V4's own sums
        for scheme, activation in (PAIRS[1], *PAIRS[2:4], *PAIRS[6:7]):
            yield matmul_sample(4, features, outputs, scheme, activation, "bfloat16")


def matmul_sample(tokens: int, features: int, outputs: int, scheme: str, activation: str, dtype: str) -> Sample:
    """Activations times a packed weight whose blocks differ in magnitude."""

    def make(draw: Draw) -> tuple[Any, ...]:
        weight = draw.uneven(outputs, features)
        return draw.heavy(tokens, features, dtype=dtype), prepare(weight, scheme)

    return Sample(
        "quant.matmul",
        f"tokens={tokens}/{features}x{outputs}/{scheme}/{activation}",
        make,
        sizes={"features": features, "outputs": outputs},
        dtypes={"x": dtype},
        layouts={"weight": scheme},
        attributes={"activation": activation},
        dynamic={"tokens": tokens},
    )
