"""The compressor, cut into pieces in every way, against the reference in one go."""

from __future__ import annotations

import pytest
import torch
from hal_cpu import compression
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.layouts import layout
from hal.reference import compression as reference
from hal.rope import Rope

HIDDEN, HEAD_DIM = 12, 16


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 23), max_size=5), min_size=1, max_size=3),
    st.sampled_from([(4, True), (8, False), (2, True)]),
    st.integers(1, 50),
    st.integers(0, 2**31),
)
def test_chunks_of_several_requests(chunks: list[list[int]], kind: tuple[int, bool], piece: int, seed: int) -> None:
    """Requests of different lengths in steps of different lengths, from states full of another request's remains."""
    ratio, overlap = kind
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width = HEAD_DIM * (2 if overlap else 1)
    weights = random(width, HIDDEN), random(width, HIDDEN), random(ratio, width), random(HEAD_DIM), Rope(8, 100.0)
    names = {"ratio": ratio, "overlap": overlap, "hadamard": True, "eps": 1e-6}
    totals = [sum(lengths) for lengths in chunks]
    hidden = [random(total, HIDDEN) for total in totals]
    slots = torch.randperm(len(chunks), generator=generator).tolist()

    def empty() -> tuple[StateCache, KVCache]:
        state = StateCache.allocate(len(chunks), ratio, overlap, HEAD_DIM, dtype=torch.float64)
        state.tensor.fill_(torch.nan)
        return state, KVCache.allocate(layout("rows_f64", HEAD_DIM, 4, 8), len(chunks), 60)

    want_state, want = empty()
    batch = Batch.build(totals, [0] * len(chunks), slots)
    reference.compress(torch.cat(hidden), *weights, batch, want_state, want, **names)

    state, cache = empty()
    done = [0] * len(chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "TOKENS", piece)
        patch.setattr(compression, "ROWS", 3)
        for step in range(max(map(len, chunks))):
            lengths = [lengths[step] if step < len(lengths) else 0 for lengths in chunks]
            new = [x[first : first + length] for x, first, length in zip(hidden, done, lengths, strict=True)]
            batch = Batch.build(lengths, done, slots)
            compression.compress(torch.cat(new), *weights, batch, state, cache, **names)
            done = [first + length for first, length in zip(done, lengths, strict=True)]
    torch.testing.assert_close(cache.canonical(torch.float64), want.canonical(torch.float64), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state.tensor, want_state.tensor, rtol=1e-12, atol=1e-12, equal_nan=True)
