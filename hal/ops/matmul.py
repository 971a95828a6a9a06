"""Contracts of quantised products."""

from __future__ import annotations

from hal.contract import Contract

__all__ = ["ACTIVATIONS", "CONTRACTS", "SCHEMES"]

TOKENS = (0, 1 << 20)

STRIDES = "hal.conformance.laws.memory:SPREAD_OUT"
CHUNKS = "hal.conformance.laws.pieces:CHUNKS"

ACTIVATIONS = ("none", "e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32", "int8_token")
"""Activation quantisers, by the names of `hal.formats`."""

SCHEMES = (
    "float64",
    "float32",
    "bf16",
    "fp8_block128",
    "mxfp4",
    "mxfp8",
    "w8a8_int8",
    "w4a8_int",
    "w4a8_int_256",
    "hif8",
)
"""Weight schemes, by the names of `hal.formats`."""

QUANTIZE = Contract(
    name="quant.quantize",
    version=1,
    signature="x[tokens features]:float; activation: str -> codes[tokens codes], scales[tokens blocks]",
    reference="hal.reference.matmul:quantize",
    doc="Quantise activations, bit for bit: codes, and scales per block of channels or per token.",
    edges={
        "zeros": "A block of zeros gets the quantiser's smallest scale and codes of 0.",
        "scales": "Scales of block quantisers are powers of two, rounded up on the bits.",
        "empty": "Zero tokens are legal and return empty tensors.",
    },
    numerics="codes",
    dynamic={"tokens": TOKENS},
    samples="hal.conformance.samples.matmul:quantize",
    laws=(STRIDES, CHUNKS),
    choices={"activation": ACTIVATIONS[1:]},
)

MATMUL = Contract(
    name="quant.matmul",
    version=1,
    signature="x[tokens features]:float, weight: Weight; activation: str -> y[tokens outputs]:float",
    reference="hal.reference.matmul:matmul",
    doc="Quantise activations and multiply by a packed weight: x times weight transposed, in the dtype of x.",
    edges={
        "ragged blocks": "Features and outputs need not be multiples of the scheme's block.",
        "empty": "Zero tokens are legal and return empty tensors.",
    },
    numerics="sum",
    dynamic={"tokens": TOKENS},
    samples="hal.conformance.samples.matmul:matmul",
    laws=(STRIDES, CHUNKS),
    choices={"activation": ACTIVATIONS},
)

CONTRACTS = (QUANTIZE, MATMUL)
