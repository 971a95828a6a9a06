"""Shared by the kernels' tests: batches, poisoned caches, and how close sums must be."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache
from hal.layouts import layout


def cache(name: str, dim: int, slots: int, rows: int, block: int = 4, rope: int = 64, apart: int = 0) -> KVCache:
    """Pages in shuffled order, full of NaN or 0xFF, `apart` bytes or elements between them."""
    kind = layout(name, dim, block, rope_dim=rope)
    blocks = slots * max(1, -(-rows // block))
    made = kind.allocate(blocks + 1)
    wide = made.new_empty(blocks + 1, made[0].numel() + apart)
    wide.view(torch.uint8).fill_(0xFF)
    pages = wide[:, : made[0].numel()].unflatten(1, made.shape[1:]) if apart else wide.view(made.shape)
    order = torch.randperm(blocks + 1, generator=torch.Generator().manual_seed(rows))[:blocks]
    return KVCache(kind, pages, order.view(slots, -1).int())


def fill(into: KVCache, slot: int, values: Tensor) -> None:
    """Store `values` as rows 0.. of a request."""
    rows = torch.arange(len(values))
    into.write(values, into.physical(torch.full_like(rows, slot), rows))


def twin(of: KVCache) -> KVCache:
    """The same cache with pages of its own."""
    return KVCache(of.layout, of.pages.clone(), of.block_table)


def batch(*requests: tuple[int, int]) -> Batch:
    """Requests as (new tokens, start), in slots that are not in order."""
    count = len(requests)
    return Batch.build([n for n, _ in requests], [s for _, s in requests], [(i + 1) % count for i in range(count)])


def close(got: Tensor, want: Tensor, tolerance: float = 4e-3) -> None:
    """Within one bfloat16 step of the largest value of each row, and on average far closer."""
    assert got.shape == want.shape
    assert torch.equal(got.isinf(), want.isinf())
    got, want = got.double().nan_to_num(posinf=0, neginf=0), want.double().nan_to_num(posinf=0, neginf=0)
    error = (got - want).abs()
    limit = tolerance * (want.abs() + want.abs().amax(-1, keepdim=True))
    assert not got.isnan().any()
    assert bool((error <= limit + 1e-6).all()), f"off by {(error - limit).max():.3g}"
