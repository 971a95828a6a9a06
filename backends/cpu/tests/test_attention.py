"""Attention and selection on random ragged batches, against the references."""

from __future__ import annotations

import pytest
import torch
from hal_cpu import attention, selection, topk
from hal_cpu.softmax import Part, merge
from hal_cpu.softmax import attention as softmax_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.layouts import layout
from hal.reference import attention as reference_attention
from hal.reference import selection as reference_selection
from hal.rope import Rope

requests = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 90)), min_size=0, max_size=4)


def random_cache(name: str, head_dim: int, slots: int, rows: int, generator: torch.Generator) -> KVCache:
    """Every row of every slot random, in shuffled pages of 16."""
    cache = KVCache.allocate(layout(name, head_dim, 16, rope_dim=16), slots, max(1, rows))
    blocks = cache.block_table.numel()
    cache = KVCache(
        cache.layout, cache.pages, torch.randperm(blocks, generator=generator).view_as(cache.block_table).int()
    )
    cache.write(torch.randn(blocks * 16, head_dim, generator=generator), torch.arange(blocks * 16))
    return cache


@settings(max_examples=60, deadline=None)
@given(
    requests,
    st.sampled_from(["window", "listed", "prefix"]),
    st.integers(0, 20),
    st.integers(1, 12),
    st.integers(0, 2**31),
)
def test_attend(spans: list[tuple[int, int]], kind: str, window_size: int, top_k: int, seed: int) -> None:
    """Listed rows may repeat, be -1 anywhere, and be few of many or most of them: both ways to visit them are met."""
    generator = torch.Generator().manual_seed(seed)
    lengths, starts = [length for length, _ in spans], [start for _, start in spans]
    batch = Batch.build(lengths, starts, torch.randperm(len(spans), generator=generator).tolist())
    ratio = {"window": 0, "listed": 2, "prefix": 2}[kind]
    window = random_cache("rows_f64", 32, len(spans), 130, generator)
    compressed = random_cache("rows_f64", 32, len(spans), 65, generator) if ratio else None
    rows = None
    if kind == "listed":
        rows = torch.rand(batch.tokens, top_k, generator=generator) * (batch.visible(2)[:, None] + 1)
        rows = rows.int() - 1
    q = torch.randn(batch.tokens, 3, 32, generator=generator, dtype=torch.float64)
    sink = torch.randn(3, generator=generator) if seed % 2 else None
    names = {"scale": 0.3, "window_size": window_size, "ratio": ratio}
    out, lse = attention.attend(q, window, compressed, rows, sink, batch, **names)
    expected, expected_lse = reference_attention.attend(q, window, compressed, rows, sink, batch, **names)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(requests, st.integers(1, 30), st.booleans(), st.integers(0, 2**31))
def test_select(spans: list[tuple[int, int]], top_k: int, coarse: bool, seed: int) -> None:
    """Coarse keys and weights make many exact ties; the lowest entries win, as in the reference."""
    generator = torch.Generator().manual_seed(seed)
    lengths, starts = [length for length, _ in spans], [start for _, start in spans]
    batch = Batch.build(lengths, starts, torch.randperm(len(spans), generator=generator).tolist())
    cache = random_cache("rows_f64", 32, len(spans), 65, generator)
    q = torch.randn(batch.tokens, 2, 32, generator=generator, dtype=torch.float64)
    weights = torch.randn(batch.tokens, 2, generator=generator, dtype=torch.float64)
    if coarse:
        cache.pages.copy_(
            cache.pages.sign() * (torch.rand(cache.pages.shape[:2], generator=generator) < 0.3)[..., None]
        )
        q, weights = q.sign(), weights.sign()
    names = {"top_k": top_k, "ratio": 2, "hadamard": not coarse, "scale": 0.25}
    rope = Rope(16, 10000.0) if not coarse else Rope(16, 1e30)
    got = selection.select(q, weights, rope, batch, cache, **names)
    want = reference_selection.select(q, weights, rope, batch, cache, **names)
    assert torch.equal(got.sort(1).values, want.sort(1).values)
    assert torch.equal(got >= 0, want >= 0)


def test_many_entries_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of keys and of products meet at every boundary."""
    monkeypatch.setattr(selection, "KEYS", 48)
    monkeypatch.setattr(selection, "PRODUCT_FLOATS", 1)
    generator = torch.Generator().manual_seed(3)
    batch = Batch.build([3, 1], [700, 2000], [1, 0])
    cache = random_cache("rows_f64", 32, 2, 1001, generator)
    q = torch.randn(4, 2, 32, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    got = selection.index_scores(q, weights, batch, cache, ratio=2, scale=1.0)
    want = reference_selection.index_scores(q, weights, batch, cache, ratio=2, scale=1.0)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_long_prefix_is_visited_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of keys merge into the same softmax."""
    generator = torch.Generator().manual_seed(4)
    batch = Batch.build([5, 1], [200, 7], [1, 0])
    window, compressed = (random_cache("rows_f64", 32, 2, rows, generator) for rows in (210, 103))
    q = torch.randn(6, 3, 32, generator=generator, dtype=torch.float64)
    names = {"scale": 0.3, "window_size": 9, "ratio": 2}
    whole = attention.attend(q, window, compressed, None, None, batch, **names)
    monkeypatch.setattr(attention, "KEYS", 7)
    parts = attention.attend(q, window, compressed, None, None, batch, **names)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_merging_parts_without_keys() -> None:
    def part(scores: Tensor) -> Part:
        return softmax_of(scores.clone(), torch.ones(scores.shape[-1], 2))

    nothing, something = torch.full((1, 3), -torch.inf), torch.tensor([[0.0, 1.0, -torch.inf]])
    both = merge(part(nothing), part(something))
    torch.testing.assert_close(both.out, torch.ones(1, 2))
    torch.testing.assert_close(both.lse, something.logsumexp(-1))
    neither = merge(part(nothing), part(nothing))
    assert torch.equal(neither.out, torch.zeros(1, 2))
    assert torch.equal(neither.lse, torch.full((1,), -torch.inf))


@given(st.lists(st.integers(-2, 2), min_size=3, max_size=12), st.integers(1, 3))
def test_top_k_breaks_ties_by_index(scores: list[int], k: int) -> None:
    chosen = topk.top_k(torch.tensor([scores], dtype=torch.float32), k)[0].tolist()
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]
    assert chosen == best
    assert sorted(topk.top_k(torch.tensor([scores], dtype=torch.float32), k, ordered=False)[0].tolist()) == sorted(best)
