"""Samples of the mixture of experts: routing, rows on their way, two products, sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from hal.conformance.samples.sample import Draw, Sample
from hal.dispatched import Dispatched
from hal.formats import PackedWeight, prepare, quantize

EXPERTS, TOP_K, VOCAB, CLAMP = 16, 6, 64, 2.0
"""V4 clamps at 10, below which SiLU hides a missing clamp."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer of experts."""

    hidden: int = 256
    inter: int = 128
    experts: int = EXPERTS


SMALL = Shape()
"""Scaled down from V4's 4096, 2048 and 256."""

TOKENS = (0, 1, 5, 33)
SCHEMES = (
    ("float32", "none"),
    ("bf16", "none"),
    ("fp8_block128", "e4m3_128"),
    ("mxfp4", "e4m3_32"),
    ("mxfp4", "e4m3_128"),
)
INTEGERS = (("w8a8_int8", "int8_token"), ("w4a8_int", "int8_token"))
WIDE = Shape(hidden=512, inter=256)
"""For `w4a8_int_256`, whose groups are longer than the small sizes."""


def route() -> Iterator[Sample]:
    """Every scoring; with bias, without, by table; ties; as many experts as there are."""
    for scoring in ("sqrtsoftplus", "sigmoid", "softmax"):
        for tokens in TOKENS:
            yield route_sample(tokens, scoring, "bias")
        for kind in ("plain", "table", "ties"):
            yield route_sample(33, scoring, kind)
    yield route_sample(33, "sqrtsoftplus", "bias", experts=256)
    yield route_sample(33, "sqrtsoftplus", "bias", experts=384)
    yield route_sample(5, "sqrtsoftplus", "plain", experts=TOP_K)


def route_sample(tokens: int, scoring: str, kind: str, experts: int = EXPERTS, top_k: int = TOP_K) -> Sample:
    """Experts of each token; `kind` is "bias", "plain", "table" or "ties"."""

    def make(draw: Draw) -> tuple[Any, ...]:
        logits = draw.normal(tokens, experts, std=2.0)
        bias = draw.normal(experts, std=0.3) if kind == "bias" else None
        if kind == "ties":
            logits = logits.round()
        if kind != "table":
            return logits, bias, None, None
        return logits, None, draw.integers(VOCAB, tokens), draw.distinct(experts, VOCAB, top_k)

    return Sample(
        "moe.route",
        f"{scoring}/{kind}/tokens={tokens}/experts={experts}",
        make,
        sizes={"experts": experts, "top_k": top_k} | ({"vocab": VOCAB} if kind == "table" else {}),
        attributes={"top_k": top_k, "scoring": scoring, "scale": 1.5},
        dynamic={"tokens": tokens},
    )


def dispatch() -> Iterator[Sample]:
    """Every quantiser; unused slots; one busy expert; experts without rows."""
    for activation in ("none", "e4m3_128", "e4m3_32", "e2m1_32", "int8_token"):
        yield dispatch_sample(33, activation, "spread")
    for tokens in TOKENS:
        yield dispatch_sample(tokens, "e4m3_128", "holes")
    yield dispatch_sample(33, "e4m3_128", "crowded")


def dispatch_sample(
    tokens: int, activation: str, routing: str, dtype: str = "bfloat16", shape: Shape = SMALL
) -> Sample:
    """Tokens on their way to experts, routed as `routing` says."""

    def make(draw: Draw) -> tuple[Any, ...]:
        ids, weights = routed(draw, tokens, routing, shape)
        return draw.heavy(tokens, shape.hidden, dtype=dtype), ids, weights, None

    return Sample(
        "moe.dispatch",
        f"{routing}/tokens={tokens}/{activation}",
        make,
        sizes={"hidden": shape.hidden, "top_k": TOP_K},
        dtypes={"x": dtype},
        attributes={"experts": shape.experts, "activation": activation},
        dynamic={"tokens": tokens},
    )


def experts() -> Iterator[Sample]:
    """Every scheme with its quantiser; packed segments and padded ones; experts without rows."""
    for scheme, activation in (*SCHEMES, *INTEGERS):
        yield experts_sample(33, scheme, activation, "spread")
    yield experts_sample(33, "w4a8_int_256", "int8_token", "spread", shape=WIDE)
    for tokens in TOKENS:
        yield experts_sample(tokens, "fp8_block128", "e4m3_128", "holes")
    yield experts_sample(33, "fp8_block128", "e4m3_128", "crowded")
    yield experts_sample(33, "mxfp4", "e4m3_32", "spread", align=16)


def experts_sample(
    tokens: int, scheme: str, activation: str, routing: str, align: int = 1, shape: Shape = SMALL
) -> Sample:
    """Two products per row; segments begin at multiples of `align`."""
    dtype = _dtype(scheme)

    def make(draw: Draw) -> tuple[Any, ...]:
        ids, weights = routed(draw, tokens, routing, shape)
        x = draw.heavy(tokens, shape.hidden, dtype=dtype)
        return dispatched(draw, x, ids, weights, activation, align, shape), *packed(draw, scheme, shape)

    return Sample(
        "moe.experts",
        f"{routing}/tokens={tokens}/{scheme}/{activation}/align={align}",
        make,
        sizes={"hidden": shape.hidden, "inter": shape.inter},
        dtypes={"rows": dtype},
        layouts={"w13": scheme, "w2": scheme},
        attributes={"clamp": CLAMP, "activation": activation},
        dynamic={"rows": tokens * TOP_K},
    )


def combine() -> Iterator[Sample]:
    """With and without residual; unused slots; NaN in padding; large values that cancel."""
    for tokens in TOKENS:
        for residual in (True, False):
            yield combine_sample(tokens, "holes", residual)
    yield combine_sample(33, "spread", True, align=16)
    yield combine_sample(33, "spread", True, std=1e4)


def combine_sample(
    tokens: int,
    routing: str,
    residual: bool,
    align: int = 1,
    std: float = 1.0,
    dtype: str = "bfloat16",
    shape: Shape = SMALL,
) -> Sample:
    """Rows back to their tokens, garbage in padding rows."""

    def make(draw: Draw) -> tuple[Any, ...]:
        ids, weights = routed(draw, tokens, routing, shape)
        sent = dispatched(draw, draw.normal(tokens, shape.hidden, dtype=dtype), ids, weights, "none", align, shape)
        rows = draw.normal(len(sent.rows), shape.hidden, dtype=dtype, std=std)
        rows[sent.weights.isnan()] = draw.garbage
        return rows, sent, draw.normal(tokens, shape.hidden, dtype=dtype) if residual else None

    return Sample(
        "moe.combine",
        f"{routing}/tokens={tokens}/residual={residual}/align={align}/std={std:g}",
        make,
        sizes={"hidden": shape.hidden},
        dtypes={"rows": dtype},
        dynamic={"tokens": tokens, "rows": tokens * TOP_K},
    )


def ffn() -> Iterator[Sample]:
    """Whole layers in every scheme; unused slots, one busy expert, one token, none."""
    for scheme, activation in (*SCHEMES, *INTEGERS):
        yield ffn_sample(33, scheme, activation, "spread")
    yield ffn_sample(33, "w4a8_int_256", "int8_token", "spread", shape=WIDE)
    yield ffn_sample(33, "w8a8_int8", "int8_token", "holes", clamp=inf)
    for tokens in TOKENS:
        yield ffn_sample(tokens, "fp8_block128", "e4m3_128", "holes")
    yield ffn_sample(33, "mxfp4", "e4m3_128", "crowded", residual=False)


def ffn_sample(
    tokens: int,
    scheme: str,
    activation: str,
    routing: str,
    residual: bool = True,
    dtype: str = "",
    shape: Shape = SMALL,
    clamp: float = CLAMP,
) -> Sample:
    """A whole routed layer; a model without a limit has the clamp infinity."""
    dtype = dtype or _dtype(scheme)

    def make(draw: Draw) -> tuple[Any, ...]:
        ids, weights = routed(draw, tokens, routing, shape)
        x, w13_w2 = draw.heavy(tokens, shape.hidden, dtype=dtype), packed(draw, scheme, shape)
        return x, ids, weights, *w13_w2, draw.normal(tokens, shape.hidden, dtype=dtype) if residual else None, None

    return Sample(
        "moe.ffn",
        f"{routing}/tokens={tokens}/{scheme}/{activation}/residual={residual}" + f"/clamp={clamp:g}" * (clamp != CLAMP),
        make,
        sizes={"hidden": shape.hidden, "top_k": TOP_K, "inter": shape.inter},
        dtypes={"x": dtype},
        layouts={"w13": scheme, "w2": scheme},
        attributes={"experts": shape.experts, "clamp": clamp, "activation": activation},
        dynamic={"tokens": tokens},
    )


def _dtype(scheme: str) -> str:
    """The model's dtype where weights have this scheme."""
    return scheme if scheme in ("float32", "float64") else "bfloat16"


def routed(draw: Draw, tokens: int, routing: str, shape: Shape = SMALL) -> tuple[Tensor, Tensor]:
    """Different experts per token: "spread" over all, with unused slots ("holes"), or all tokens on one ("crowded")."""
    ids = draw.distinct(shape.experts - 1, tokens, TOP_K)  # the last expert has no rows
    if routing == "crowded":
        ids[:, 1:], ids[:, 0] = -1, 3
    if routing == "holes":
        ids = torch.where(draw.integers(4, tokens, TOP_K) == 0, -1, ids).int()
        ids[1::7] = -1
    weights = draw.normal(tokens, TOP_K).abs() + 0.1
    return ids, weights / weights.sum(-1, keepdim=True) * 1.5


def dispatched(
    draw: Draw, x: Tensor, ids: Tensor, weights: Tensor, activation: str, align: int, shape: Shape = SMALL
) -> Dispatched:
    """Rows as some dispatch might leave them: segments begin at multiples of `align`, garbage between them."""
    flat = ids.flatten().long()
    order = flat.argsort(stable=True)[int((flat < 0).sum()) :]
    counts = torch.bincount(flat[order], minlength=shape.experts)
    lengths = (counts + align - 1) // align * align
    starts = lengths.cumsum(0) - lengths
    place = (starts - (counts.cumsum(0) - counts))[flat[order]] + torch.arange(len(order), device=x.device)
    index = torch.full_like(flat, -1)
    index[order] = place
    token = torch.zeros(int(lengths.sum()), dtype=torch.int64, device=x.device)
    token[place] = order // TOP_K
    factors = weights.new_full((len(token),), torch.nan)
    factors[place] = weights.flatten()[order]
    done = quantize(x, activation)
    done = done[token] if len(x) else done
    rows, scales = done.codes, done.scales
    if activation == "none":
        rows = torch.where(factors.isnan()[:, None], draw.garbage, rows).to(x.dtype)
    return Dispatched(
        rows,
        None if activation == "none" else scales,
        activation,
        factors,
        counts,
        index.view(ids.shape),
        len(x),
        TOP_K,
        x.dtype,
        starts=None if align == 1 else starts,
    )


def packed(draw: Draw, scheme: str, shape: Shape = SMALL) -> tuple[PackedWeight, PackedWeight]:
    """Both products' weights of all experts."""
    w13 = draw.uneven(shape.experts, 2 * shape.inter, shape.hidden)
    w2 = draw.uneven(shape.experts, shape.hidden, shape.inter)
    return prepare(w13, scheme), prepare(w2, scheme)
