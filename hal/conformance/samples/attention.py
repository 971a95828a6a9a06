"""Samples of attention and selection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hal.batch import Batch
from hal.conformance.samples.batches import ALL, DECODE, EMPTY, LONG, MIXED, PREFILL, Requests, filled, rope_of
from hal.conformance.samples.sample import Draw, Sample
from hal.formats import simulate

WINDOW, BLOCK = 128, 64
SELECTED = {"rows": "selected", "lse": "none"}


def attend() -> Iterator[Sample]:
    """Window only, explicit rows and visible prefix; plain and packed caches; sinks, holes, lonely queries."""
    for kind, ratio in (("swa", 0), ("csa", 4), ("hca", 128)):
        for requests in ALL:
            yield attend_sample(kind, ratio, requests, "float32", "rows_f32")
        yield attend_sample(kind, ratio, MIXED, "bfloat16", "rows_bf16")
        yield attend_sample(kind, ratio, MIXED, "bfloat16", "v4_584")
        yield attend_sample(kind, ratio, MIXED, "float32", "rows_bf16_fp8")
    yield attend_sample("csa", 4, MIXED, "float32", "v4_584", heads=64, top_k=64)
    yield attend_sample("csa", 4, DECODE, "float32", "v4_584", top_k=1)
    yield attend_sample("csa", 4, PREFILL, "float32", "rows_f32", holes="front")
    yield attend_sample("csa", 4, MIXED, "float32", "rows_f32", holes="all")
    for requests in (PREFILL, DECODE, MIXED):
        for kind, ratio in (("swa", 0), ("csa", 4), ("hca", 128)):
            yield attend_sample(kind, ratio, requests, "bfloat16", "rows_bf16", holes="selected")
    yield attend_sample("csa", 4, MIXED, "float32", "rows_f32", window=0, holes="all")
    yield attend_sample("hca", 128, MIXED, "float32", "rows_f32", window=0)
    yield attend_sample("swa", 0, MIXED, "float32", "rows_f32", sink=False)
    yield attend_sample("swa", 0, PREFILL, "float32", "rows_f32", window=1)
    for rows in ("v4_584", "rows_bf16"):  # V4's own sizes
        yield attend_sample("csa", 4, LONG, "bfloat16", rows, heads=64, top_k=512, holes="selected", once=True)
        yield attend_sample("hca", 128, LONG, "bfloat16", rows, heads=64, once=True)
        yield attend_sample("swa", 0, LONG, "bfloat16", rows, heads=64, once=True)
    yield attend_sample("csa", 4, LONG, "bfloat16", "v4_584", heads=128, top_k=1024, holes="selected", once=True)


def attend_sample(
    kind: str,
    ratio: int,
    requests: Requests,
    dtype: str,
    rows: str,
    *,
    heads: int = 8,
    head_dim: int = 512,
    top_k: int = 24,
    holes: str = "some",
    window: int = WINDOW,
    sink: bool = True,
    once: bool = False,
) -> Sample:
    """Attention over the window of `requests` and what `kind` (swa, csa, hca) sees beside it; `holes` as in `_rows`."""

    def make(draw: Draw) -> tuple[Any, ...]:
        batch = requests.batch(draw)
        near = filled(draw, rows, head_dim, BLOCK, requests.ends, batch)
        far = chosen = None
        if ratio:
            counts = tuple(end // ratio for end in requests.ends)
            far = filled(draw, rows, head_dim, BLOCK, counts, batch)
        if kind == "csa":
            chosen = _rows(draw, batch, ratio, top_k, holes)
        q = draw.normal(requests.tokens, heads, head_dim, dtype=dtype)
        return q, near, far, chosen, draw.normal(heads) if sink else None, batch

    words = [kind, requests.title, dtype, rows, f"heads={heads}"]
    if kind == "csa":
        words += [f"top_k={top_k}", f"holes={holes}"]
    elif holes == "selected":
        words += ["no-lse"]
    words += [f"window={window}", "sink" if sink else "no-sink"]
    sizes = {"heads": heads, "head_dim": head_dim} | ({"top_k": top_k} if kind == "csa" else {})
    return Sample(
        "attn.attend",
        "/".join(words),
        make,
        sizes=sizes,
        dtypes={"q": dtype},
        layouts={"window": rows} | ({"compressed": rows} if ratio else {}) | (SELECTED if holes == "selected" else {}),
        attributes={"scale": head_dim**-0.5, "window_size": window, "ratio": ratio},
        dynamic={"tokens": requests.tokens, "requests": len(requests.lengths)},
        once=once,
    )


def _rows(draw: Draw, batch: Batch, ratio: int, top_k: int, holes: str) -> Tensor:
    """Distinct visible entries per token, `-1` where there are fewer, and where `holes` says.

    "selected" is what `attn.select` promises: as many as there can be, then `-1`.
    """
    visible = batch.visible(ratio)
    most = max(int(visible.max()) if batch.tokens else 0, top_k)
    if holes == "selected":
        every = draw.distinct(most, batch.tokens, most)
        first = (every >= visible[:, None]).int().argsort(dim=-1, stable=True)[:, :top_k]
        every = every.gather(1, first)
        return torch.where(every < visible[:, None], every, -1).int()
    order = draw.distinct(most, batch.tokens, top_k)
    rows = torch.where(order < visible[:, None], order, -1)
    if holes == "some":
        rows = torch.where(draw.integers(5, *rows.shape) == 0, -1, rows)
    elif holes == "front":
        rows[:, : top_k // 2] = -1
    elif holes == "all":
        rows[::2] = -1
    return rows.int()


def select() -> Iterator[Sample]:
    """Every index layout; fewer, as many and more visible entries than `top_k`; ReLU ties at zero; V4's sizes."""
    for rows in ("rows_f32", "rows_bf16", "index_mxfp4_68", "index_fp8_132"):
        for requests in (PREFILL, DECODE, MIXED, EMPTY):
            yield select_sample(requests, "float32", rows)
    yield select_sample(MIXED, "bfloat16", "rows_bf16")
    yield select_sample(MIXED, "bfloat16", "index_mxfp4_68", heads=64)
    yield select_sample(DECODE, "float32", "rows_f32", top_k=128)
    yield select_sample(MIXED, "float32", "rows_f32", top_k=1)
    for rows in ("rows_bf16", "index_mxfp4_68", "index_fp8_132", "index_int8_130"):  # V4's own sizes
        yield select_sample(LONG, "bfloat16", rows, heads=64, top_k=512, once=True)


def select_sample(
    requests: Requests,
    dtype: str,
    rows: str,
    *,
    heads: int = 16,
    top_k: int = 16,
    dim: int = 128,
    once: bool = False,
) -> Sample:
    """A choice of `top_k` entries; index rows take their transform."""
    ratio, scale = 4, dim**-0.5 * heads**-0.5
    hadamard = rows.startswith("index")

    def make(draw: Draw) -> tuple[Any, ...]:
        batch = requests.batch(draw)
        cache = filled(draw, rows, dim, BLOCK, tuple(end // ratio for end in requests.ends), batch)
        q = draw.normal(requests.tokens, heads, dim, dtype=dtype)
        return q, draw.normal(requests.tokens, heads, dtype=dtype), rope_of(dim), batch, cache

    return Sample(
        "attn.select",
        f"{requests.title}/{dtype}/{rows}/heads={heads}/top_k={top_k}",
        make,
        sizes={"index_heads": heads, "index_dim": dim, "top_k": top_k},
        dtypes={"q": dtype, "weights": dtype},
        layouts={"cache": rows},
        attributes={"top_k": top_k, "ratio": ratio, "hadamard": hadamard, "scale": scale},
        dynamic={"tokens": requests.tokens, "requests": len(requests.lengths)},
        once=once,
    )


def index_scores() -> Iterator[Sample]:
    """Scores of every visible entry, -inf elsewhere."""
    for dtype, rows in (("float32", "rows_f32"), ("bfloat16", "rows_bf16"), ("float32", "index_mxfp4_68")):
        for requests in (PREFILL, DECODE, MIXED, EMPTY):
            yield index_scores_sample(requests, dtype, rows)


def index_scores_sample(requests: Requests, dtype: str, rows: str, heads: int = 16, dim: int = 128) -> Sample:
    """Scores of every visible entry, of queries that hold values of the rows' quantiser."""
    ratio = 4

    def make(draw: Draw) -> tuple[Any, ...]:
        batch = requests.batch(draw)
        cache = filled(draw, rows, dim, BLOCK, tuple(end // ratio for end in requests.ends), batch)
        q = simulate(draw.normal(requests.tokens, heads, dim, dtype=dtype), cache.layout.index_activation)
        return q, draw.normal(requests.tokens, heads, dtype=dtype), batch, cache

    return Sample(
        "attn.index_scores",
        f"{requests.title}/{dtype}/{rows}",
        make,
        sizes={"index_heads": heads, "index_dim": dim},
        dtypes={"q": dtype, "weights": dtype},
        layouts={"cache": rows},
        attributes={"ratio": ratio, "scale": dim**-0.5 * heads**-0.5},
        dynamic={"tokens": requests.tokens, "requests": len(requests.lengths)},
    )
