"""Attention, selection and compression of the Triton kernels against the references."""

import pytest
import torch
from hal_triton import attention, compression, selection
from hal_triton.tuning import stand_in
from triton_lab import batch, cache, close, fill, twin

from hal.cache import StateCache
from hal.reference import attention as reference_attention
from hal.reference import compression as reference_compression
from hal.reference import selection as reference_selection
from hal.rope import Rope

PLAIN, YARN = Rope(64, 10000.0), Rope(64, 160000.0, 16.0, 65536)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(name, dim, requests, ratio, seed=0, apart=0, block=4):
    """A cache that holds what each request of `requests` (tokens, start) has written, in `batch`'s slots."""
    rows = [max(1, (n + s) // ratio) for n, s in requests]
    made = cache(name, dim, len(requests), max(rows), block=block, apart=apart)
    for i, count in enumerate(rows):
        fill(made, (i + 1) % len(requests), randn(seed + i, count, dim))
    return made


REQUESTS = ((3, 0), (0, 4), (1, 37), (2, 14))


@pytest.mark.parametrize("layout", ["v4_584", "rows_bf16"])
@pytest.mark.parametrize("rows", ["none", "prefix", "listed"])
def test_attend(layout, rows):
    dim = 128 if layout == "v4_584" else 64
    window = filled(layout, dim, REQUESTS, 1, apart=576 if layout == "v4_584" else 0)
    compressed = None if rows == "none" else filled(layout, dim, REQUESTS, 4, seed=9, block=2)
    b = batch(*REQUESTS)
    q = (randn(1, b.tokens, 20, dim) * 2).bfloat16()
    sink = randn(2, 20)
    listed = None
    if rows == "listed":
        listed = torch.full((b.tokens, 7), -1, dtype=torch.int32)
        for t, visible in enumerate(b.visible(4).tolist()):
            if visible:
                listed[t, 1:6] = torch.randint(0, visible, (5,), generator=torch.Generator().manual_seed(t))
                listed[t, 3] = -1
    arguments = (window, compressed, listed, sink, b)
    attributes = {"scale": dim**-0.5, "window_size": 8, "ratio": 4 if rows != "none" else 0}
    out, lse = attention.attend(q, *arguments, **attributes)
    want, want_lse = reference_attention.attend(q.double(), *arguments, **attributes)
    close(out, want)
    close(lse, want_lse, 1e-5)


def test_attend_without_sink_and_window():
    window, compressed = filled("rows_bf16", 64, REQUESTS, 1), filled("rows_bf16", 64, REQUESTS, 4, seed=3)
    b = batch(*REQUESTS)
    q = randn(4, b.tokens, 4, 64).bfloat16()
    attributes = {"scale": 0.125, "window_size": 0, "ratio": 4}
    out, lse = attention.attend(q, window, compressed, None, None, b, **attributes)
    want, want_lse = reference_attention.attend(q.double(), window, compressed, None, None, b, **attributes)
    close(out, want)
    close(lse, want_lse, 1e-5)
    assert bool(lse.isinf().any())
    assert not bool(out[lse.isinf().all(-1)].any())


def test_parts_merge_to_the_whole():
    """A decode step over a long prefix is cut; bits of tokens whose rows fit one part do not change."""
    requests = ((1, 2399), (1, 79))
    window, compressed = (
        filled("v4_584", 128, requests, 1, block=64),
        filled("v4_584", 128, requests, 4, seed=5, block=64),
    )
    b = batch(*requests)
    q = randn(6, 2, 16, 128).bfloat16()
    arguments = (q, window, compressed, None, randn(7, 16), b)
    attributes = {"scale": 128**-0.5, "window_size": 16, "ratio": 4}
    cut, cut_lse = attention.attend(*arguments, **attributes)
    whole, whole_lse = attention.attend_whole(*arguments, **attributes)
    want, want_lse = reference_attention.attend(q.double(), *arguments[1:], **attributes)
    for out, lse in ((cut, cut_lse), (whole, whole_lse)):
        close(out, want)
        close(lse, want_lse, 1e-5)
    assert torch.equal(cut[1], whole[1])
    assert torch.equal(cut_lse[1], whole_lse[1])


@pytest.mark.parametrize("layout", ["index_fp8_132", "index_mxfp4_68", "index_bf16_mxfp4", "rows_bf16"])
@pytest.mark.parametrize("chip", ["sm80", "sm90", "a2"])
@pytest.mark.parametrize("entries", [selection.ENTRIES, 64])
def test_select(layout, chip, entries, monkeypatch):
    """Scored and chosen at once, in one segment and in several; on a2 one after the other."""
    monkeypatch.setattr(selection, "ENTRIES", entries)
    requests = ((3, 0), (2, 77), (1, 300))
    keys = filled(layout, 128, requests, 4, block=16)
    b = batch(*requests)
    q, weights = randn(1, b.tokens, 20, 128).bfloat16(), randn(2, b.tokens, 20).bfloat16()
    hadamard = layout != "rows_bf16"
    attributes = {"ratio": 4, "scale": 0.05}
    with stand_in(chip):
        rows = selection.select(q, weights, YARN, b, keys, top_k=8, hadamard=hadamard, **attributes)
    want = reference_selection.select(q, weights, YARN, b, keys, top_k=8, hadamard=hadamard, **attributes)
    assert torch.equal(rows.sort(-1).values, want.sort(-1).values)
    first = rows >= 0
    assert bool((first[:, :-1] | ~first[:, 1:]).all())
    with stand_in(chip):
        scores = selection.index_scores(q, weights, b, keys, **attributes)
    close(scores, reference_selection.index_scores(q.double(), weights.double(), b, keys, **attributes), 1e-5)


def test_few_entries_are_all_selected():
    requests = ((3, 0), (1, 20))
    keys, b = filled("rows_bf16", 128, requests, 4), batch(*requests)
    q, weights = randn(1, 4, 2, 128).bfloat16(), randn(2, 4, 2).bfloat16()
    attributes = {"top_k": 16, "ratio": 4, "hadamard": False, "scale": 1.0}
    rows = selection.select(q, weights, YARN, b, keys, **attributes)
    want = reference_selection.select(q, weights, YARN, b, keys, **attributes)
    assert torch.equal(rows.sort(-1).values, want.sort(-1).values)


@pytest.mark.parametrize("width", [20, 700])
def test_top_k_breaks_ties_by_the_lowest_entry(width, monkeypatch):
    """Segment by segment gives what one segment gives; ReLU makes most scores exactly 0."""
    monkeypatch.setattr(selection, "SEGMENT", 64)
    g = torch.Generator().manual_seed(width)
    scores = torch.randint(-2, 3, (5, width), generator=g).float() * torch.tensor([0.0, 1.0, -0.0, 1.0, 1.0])[:, None]
    positions = torch.tensor([width, 2 * width, width // 2, 3, 1]) * 2 - 1
    chosen = torch.empty(5, 16, dtype=torch.int32)
    selection._top_k(scores.contiguous(), None, positions, chosen, 2)
    for t in range(5):
        visible = min(width, (int(positions[t]) + 1) // 2)
        best = scores[t, :visible].sort(descending=True, stable=True).indices[:16].sort().values.tolist()
        assert chosen[t].tolist() == best + [-1] * (16 - len(best))


STORED = ["v4_584", "index_fp8_132", "index_mxfp4_68", "index_bf16_mxfp4", "rows_bf16", "rows_bf16_fp8", "rows_f32"]


@pytest.mark.parametrize("layout", STORED)
@pytest.mark.parametrize("hadamard", [False, True])
def test_store_is_bit_exact_without_a_norm(layout, hadamard):
    """Rotation by angles that float32 holds exactly enough: at position 0 nothing is rounded differently."""
    dim = 128
    into = cache(layout, dim, 3, 16)
    other = twin(into)
    values = randn(1, 9, dim).bfloat16()
    slots = torch.tensor([5, -1, 0, 7, 12, 3, -1, 9, 2])
    positions = torch.zeros(9, dtype=torch.int64)
    arguments = (values, None, PLAIN, positions, slots)
    compression.store(*arguments, into, hadamard=hadamard, eps=1e-6)
    reference_compression.store(*arguments, other, hadamard=hadamard, eps=1e-6)
    assert torch.equal(into.pages.view(torch.uint8), other.pages.view(torch.uint8))


@pytest.mark.parametrize("layout", ["v4_584", "index_mxfp4_68", "rows_bf16"])
def test_store_norms_and_rotates(layout):
    into = cache(layout, 128, 2, 16)
    other = twin(into)
    values, norm = randn(1, 6, 128).bfloat16() * 3, (randn(2, 128) + 1).bfloat16()
    positions = torch.tensor([0, 1, 127, 4096, 100_000, 1_000_000])
    arguments = (values, norm, YARN, positions, torch.arange(6) + 2)
    compression.store(*arguments, into, hadamard=False, eps=1e-6)
    reference_compression.store(*arguments, other, hadamard=False, eps=1e-6)
    rows = torch.arange(6) + 2
    close(into.read(rows), other.read(rows), 0.2 if "mxfp4" in layout else 1e-2 if layout == "rows_bf16" else 0.07)
    different = (into.pages.view(torch.uint8) != other.pages.view(torch.uint8)).float().mean()
    assert different < 0.01


CHUNKS = [((3, 0), (1, 0), (0, 0)), ((2, 3), (9, 1), (1, 0)), ((1, 5), (1, 10), (12, 1))]


@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (4, False), (8, False)])
def test_compress_pool_in_chunks(ratio, overlap):
    dim = 32
    width = dim * (2 if overlap else 1)
    ape = randn(0, ratio, width)
    mine = StateCache.allocate(3, ratio, overlap, dim)
    mine.tensor.fill_(float("nan"))
    theirs = StateCache(mine.tensor.clone())
    for step, requests in enumerate(CHUNKS):
        b = batch(*requests)
        kv, score = randn(step, b.tokens, width), randn(step + 9, b.tokens, width) * 3
        got = compression.compress_pool(kv, score, ape, b, mine, ratio=ratio, overlap=overlap)
        want = reference_compression.compress_pool(kv, score, ape, b, theirs, ratio=ratio, overlap=overlap)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        rows, kept = needed(b, mine, ratio, overlap)
        assert torch.equal(mine.tensor[rows, kept], theirs.tensor[rows, kept])
        assert mine.tensor[rows, kept].isfinite().all()


def needed(batch, state, ratio, overlap):
    """Slots and rows of the tokens that later windows need."""
    ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True)]
    live = [torch.arange(max(0, end // ratio * ratio - ratio * overlap), end) for end in ends]
    return batch.slots.repeat_interleave(torch.tensor([len(one) for one in live])), torch.cat(
        live
    ) % state.tensor.shape[1]


LONG = ((150, 12), (0, 1), (70, 13))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (8, False)])
@pytest.mark.parametrize(("layout", "hadamard"), [("v4_584", False), ("index_mxfp4_68", True), ("rows_bf16", False)])
def test_compress_in_chunks(layout, hadamard, ratio, overlap, together, monkeypatch):
    """Projected and then pooled, and both at once; a long chunk covers several tiles."""
    monkeypatch.setattr(compression, "FEW_ROWS", 0 if together else 1000)
    dim, hidden = 128, 72
    width = dim * (1 + overlap)
    wkv, wgate = randn(1, width, hidden).bfloat16(), randn(2, width, hidden).bfloat16()
    ape, norm = randn(3, ratio, width), (randn(4, dim) * 0.1 + 1).bfloat16()
    into = cache(layout, dim, 3, 48)
    other = twin(into)
    mine = StateCache.allocate(3, ratio, overlap, dim)
    mine.tensor.fill_(float("nan"))
    theirs = StateCache(mine.tensor.clone())
    attributes = {"ratio": ratio, "overlap": overlap, "hadamard": hadamard, "eps": 1e-6}
    for step, requests in enumerate([*CHUNKS, LONG]):
        b = batch(*requests)
        x = (randn(step + 5, b.tokens, hidden) * 0.3).bfloat16()
        compression.compress(x, wkv, wgate, ape, norm, YARN, b, mine, into, **attributes)
        reference_compression.compress(x, wkv, wgate, ape, norm, YARN, b, theirs, other, **attributes)
        live = needed(b, mine, ratio, overlap)
        torch.testing.assert_close(mine.tensor[live], theirs.tensor[live], rtol=1e-4, atol=1e-4)
    written = other.canonical().isnan().logical_not().all(-1)
    assert torch.equal(into.canonical().isnan().logical_not().all(-1), written)
    close(into.canonical()[written], other.canonical()[written], 0.2 if hadamard else 0.07)
    different = (into.canonical()[written] != other.canonical()[written]).float().mean()
    assert different < 0.02
