"""Shared by the references' tests: poisoned caches, and requests that are fed in random pieces."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from hypothesis import strategies as st
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.layouts import layout

CHUNKS = st.sampled_from((0, 1, 1, 2, 3, 4, 5, 7, 8, 11, 17))


@dataclass(frozen=True)
class Schedule:
    """Steps; each feeds some requests some tokens. Requests live in shuffled slots."""

    steps: tuple[tuple[tuple[int, int], ...], ...]  # per step: (request, new tokens)
    slots: tuple[int, ...]
    seed: int

    @property
    def totals(self) -> list[int]:
        return [sum(n for step in self.steps for r, n in step if r == request) for request in range(len(self.slots))]

    def batches(self) -> list[tuple[Batch, list[tuple[int, slice]]]]:
        """Every step's batch, and which tokens of which request it holds, in batch order."""
        done, made = [0] * len(self.slots), []
        for step in self.steps:
            starts = [done[r] for r, _ in step]
            batch = Batch.build([n for _, n in step], starts, [self.slots[r] for r, _ in step])
            made.append((batch, [(r, slice(done[r], done[r] + n)) for r, n in step]))
            for r, n in step:
                done[r] += n
        return made


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    requests = draw(st.integers(1, 3))
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        order = draw(st.permutations(range(requests)))
        steps.append(tuple((r, draw(CHUNKS)) for r in order[: draw(st.integers(0, requests))]))
    return Schedule(
        tuple(steps), tuple(draw(st.permutations(range(requests + 1)))[:requests]), draw(st.integers(0, 99))
    )


def cache(head_dim: int, slots: int, rows: int, seed: int = 0, name: str = "rows_f64", block: int = 4) -> KVCache:
    """An empty cache: shuffled pages, one nobody owns, and NaN in every row of plain layouts."""
    kind = layout(name, head_dim, block, rope_dim=min(64, head_dim // 2))
    blocks = slots * max(1, -(-rows // block))
    pages = kind.allocate(blocks + 1)
    if pages.is_floating_point():
        pages.fill_(torch.nan)
    order = torch.randperm(blocks + 1, generator=torch.Generator().manual_seed(seed))[:blocks]
    return KVCache(kind, pages, order.view(slots, -1).int())


def state(slots: int, ratio: int, overlap: bool, head_dim: int, dtype: torch.dtype = torch.float64) -> StateCache:
    """States full of NaN, as if anything had been there before."""
    made = StateCache.allocate(slots, ratio, overlap, head_dim, dtype=dtype)
    made.tensor.fill_(torch.nan)
    return made


def fill(into: KVCache, slot: int, values: Tensor) -> None:
    """Store `values` as rows 0.. of a request."""
    rows = torch.arange(len(values))
    into.write(values, into.physical(torch.full_like(rows, slot), rows))


def draw(seed: int) -> SimpleNamespace:
    """`normal(*shape)` and `integers(high, *shape)` of one generator; float64."""
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        normal=lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator),
        integers=lambda high, *shape: torch.randint(high, shape, generator=generator),
    )
