"""Contracts of manifold-constrained hyper-connections (mHC): the residual streams around a sub-layer."""

from __future__ import annotations

from hal.contract import Contract

__all__ = ["CONTRACTS"]

STRIDES = "hal.conformance.laws.memory:SPREAD_OUT"
CHUNKS = "hal.conformance.laws.pieces:CHUNKS"
REVERSED = "hal.conformance.laws.slots:REVERSED_TOKENS"

TOKENS = (0, 1 << 20)
EMPTY = "Zero tokens are legal and return empty tensors."

PRE = Contract(
    name="mhc.pre",
    version=1,
    signature=(
        "streams[tokens streams hidden]:float, fn[mixes features]:f32, scale[parts]:f32, base[mixes]:f32; "
        "iterations: int, norm_eps: float, eps: float "
        "-> y[tokens hidden]:float, post[tokens streams]:f32, comb[tokens streams streams]:f32"
    ),
    reference="hal.reference.mhc:pre",
    doc="Collapse the residual streams into a sub-layer's input, and say how its output and the streams mix behind it.",
    edges={
        "order": "mixes are pre [streams], post [streams], comb [streams streams] row by row, each with its own scale.",
        "norm": "The projection comes first, the weightless RMS norm of all features scales its result.",
        "eps": "eps is added to pre, to the softmax and to all sums that divide; post is twice a sigmoid, without eps.",
        "iterations": "Rows by softmax, then columns; iterations - 1 times rows and columns again: columns come last.",
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS},
    samples="hal.conformance.samples.mhc:pre",
    laws=(STRIDES, CHUNKS, REVERSED),
    portable=True,
)

POST = Contract(
    name="mhc.post",
    version=1,
    signature=(
        "y[tokens hidden]:float, streams[tokens streams hidden]:float, post[tokens streams]:f32, "
        "comb[tokens streams streams]:f32; -> out[tokens streams hidden]:float"
    ),
    reference="hal.reference.mhc:post",
    doc="Expand a sub-layer's output onto the residual streams, which mix.",
    edges={
        "direction": "out_k = post_k * y + sum_j comb[j, k] * stream_j: comb is used transposed.",
        "rounding": "Sums are float32 and rounded once.",
        "empty": EMPTY,
    },
    numerics="sum",
    dynamic={"tokens": TOKENS},
    samples="hal.conformance.samples.mhc:post",
    laws=(STRIDES, CHUNKS, REVERSED),
    portable=True,
)

CONTRACTS = (PRE, POST)
