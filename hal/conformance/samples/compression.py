"""Samples of the compressor: pooling with state, whole compression, storing rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hal.batch import Batch
from hal.cache import StateCache
from hal.conformance.samples.batches import ALL, MIXED, Requests, filled, rope_of
from hal.conformance.samples.sample import Draw, Sample

BLOCK, HIDDEN, EPS = 64, 256, 1e-6

SHORT = Requests("short", (1, 2, 3), (0, 0, 0))
EDGES = Requests("edges", (1, 1, 1, 129), (3, 127, 128, 0))
"""Requests that complete a window with their only token, just did, or cross one at a time."""


def compress_pool() -> Iterator[Sample]:
    """CSA and HCA; windows completed by one token, in the middle of a chunk, not at all; continued and new requests."""
    for ratio, overlap in ((4, True), (128, False)):
        for head_dim in (512, 128) if overlap else (512,):
            for requests in (*ALL, SHORT, EDGES):
                yield pool_sample(requests, ratio, overlap, head_dim)


def pool_sample(requests: Requests, ratio: int, overlap: bool, head_dim: int) -> Sample:
    """Projected tokens pooled, from states as earlier chunks left them."""
    width = head_dim * (1 + overlap)

    def make(draw: Draw) -> tuple[Any, ...]:
        batch = requests.batch(draw)
        kv, score = draw.normal(requests.tokens, width), draw.normal(requests.tokens, width, std=2.0)
        return kv, score, draw.normal(ratio, width), batch, continued(draw, batch, ratio, overlap, head_dim)

    return Sample(
        "attn.compress_pool",
        f"{requests.title}/ratio={ratio}/head_dim={head_dim}",
        make,
        sizes={"width": width, "head_dim": head_dim, "ratio": ratio},
        attributes={"ratio": ratio, "overlap": overlap},
        dynamic=_dynamic(requests, ratio),
    )


def compress() -> Iterator[Sample]:
    """Every kind of entry in plain and packed rows; index entries with their transform."""
    for requests in (*ALL, SHORT, EDGES):
        yield compress_sample(requests, 4, True, 512, "rows_f32", "float32")
        yield compress_sample(requests, 128, False, 512, "rows_f32", "float32")
        yield compress_sample(requests, 4, True, 128, "rows_f32", "float32", hadamard=True)
    for rows in ("rows_bf16", "v4_584", "v4_640"):
        yield compress_sample(MIXED, 4, True, 512, rows, "bfloat16")
        yield compress_sample(EDGES, 128, False, 512, rows, "bfloat16")
    for rows in ("rows_bf16", "index_mxfp4_68", "index_fp8_132", "index_int8_130"):
        yield compress_sample(MIXED, 4, True, 128, rows, "bfloat16", hadamard=True)


def compress_sample(
    requests: Requests,
    ratio: int,
    overlap: bool,
    head_dim: int,
    rows: str,
    dtype: str,
    *,
    hadamard: bool = False,
    hidden: int = HIDDEN,
) -> Sample:
    """Hidden states compressed into entries of a cache with room for them."""
    width = head_dim * (1 + overlap)

    def make(draw: Draw) -> tuple[Any, ...]:
        batch = requests.batch(draw)
        before = tuple(start // ratio for start in requests.starts)
        cache = filled(draw, rows, head_dim, BLOCK, before, batch, room=tuple(end // ratio for end in requests.ends))
        wkv, wgate = (draw.normal(width, hidden, dtype=dtype, std=hidden**-0.5) for _ in range(2))
        norm = 1 + draw.normal(head_dim, std=0.2)
        state = continued(draw, batch, ratio, overlap, head_dim)
        x = draw.normal(requests.tokens, hidden, dtype=dtype)
        return x, wkv, wgate, draw.normal(ratio, width), norm, rope_of(head_dim), batch, state, cache

    return Sample(
        "attn.compress",
        f"{requests.title}/ratio={ratio}/head_dim={head_dim}/{dtype}/{rows}",
        make,
        sizes={"hidden": hidden, "width": width, "head_dim": head_dim, "ratio": ratio},
        dtypes={"x": dtype},
        layouts={"cache": rows},
        attributes={"ratio": ratio, "overlap": overlap, "hadamard": hadamard, "eps": EPS},
        dynamic=_dynamic(requests, ratio),
    )


def store() -> Iterator[Sample]:
    """Window rows without norm, entries with one, index rows transformed; skipped rows; no rows."""
    for rows in ("rows_f32", "rows_bf16", "rows_bf16_fp8", "v4_584", "v4_640"):
        yield store_sample(40, 512, rows, "bfloat16", norm=False)
        yield store_sample(40, 512, rows, "bfloat16", norm=True)
    for rows in ("rows_f32", "rows_bf16", "index_mxfp4_68", "index_fp8_132", "index_int8_130", "index_bf16_mxfp4"):
        yield store_sample(40, 128, rows, "bfloat16", norm=True, hadamard=True)
    yield store_sample(1, 512, "rows_f32", "float32", norm=True)
    yield store_sample(0, 512, "rows_f32", "float32", norm=True)


def store_sample(rows: int, head_dim: int, layout: str, dtype: str, *, norm: bool, hadamard: bool = False) -> Sample:
    """`rows` values into physical rows, every fifth of them skipped."""
    requests = Requests("store", (0,), (0,))

    def make(draw: Draw) -> tuple[Any, ...]:
        cache = filled(draw, layout, head_dim, BLOCK, (0,), requests.batch(draw), room=(max(2 * BLOCK, rows),))
        slots = draw.permutation(len(cache.pages) * BLOCK)[:rows].clone()
        slots[2::5] = -1
        weight = 1 + draw.normal(head_dim, std=0.2) if norm else None
        values = draw.heavy(rows, head_dim, dtype=dtype)
        return values, weight, rope_of(head_dim), draw.integers(1 << 17, rows), slots, cache

    words = [f"rows={rows}", f"head_dim={head_dim}", dtype, layout, "norm" if norm else "no-norm"]
    return Sample(
        "attn.store",
        "/".join(words),
        make,
        sizes={"head_dim": head_dim},
        dtypes={"values": dtype},
        layouts={"cache": layout},
        attributes={"hadamard": hadamard, "eps": EPS},
        dynamic={"rows": rows},
    )


def continued(draw: Draw, batch: Batch, ratio: int, overlap: bool, head_dim: int) -> StateCache:
    """States as requests left them: rows of positions before the batch, garbage in all others."""
    state = StateCache.allocate(len(batch.lengths) + 1, ratio, overlap, head_dim, draw.device)
    rows, width = state.tensor.shape[1:]
    state.tensor.fill_(draw.garbage)
    for slot, start in zip(batch.slots.tolist(), batch.starts, strict=True):
        kept = torch.arange(max(0, start - rows), start, device=draw.device) % rows
        state.tensor[slot, kept] = draw.normal(len(kept), width)
    return state


def _dynamic(requests: Requests, ratio: int) -> dict[str, int]:
    return {
        "tokens": requests.tokens,
        "requests": len(requests.lengths),
        "entries": requests.entries(ratio),
    }
