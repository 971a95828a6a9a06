"""Batches, caches and rotary embedding: what operators are given."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding, apply_rotary_pos_emb

from hal.batch import Batch
from hal.cache import StateCache
from hal.derived import derived
from hal.errors import ContractError
from hal.rope import Rope, rotate

from . import lab

REQUESTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300)), max_size=4)


@settings(max_examples=50, deadline=None)
@given(requests=REQUESTS, ratio=st.sampled_from((1, 4, 128)))
def test_batch_says_for_every_token_what_it_is(requests: list[tuple[int, int]], ratio: int) -> None:
    slots = range(10, 10 + len(requests))
    batch = Batch.build([n for n, _ in requests], [start for _, start in requests], slots)
    tokens = [(r, start + i) for r, (n, start) in enumerate(requests) for i in range(n)]
    assert list(zip(batch.request.tolist(), batch.positions.tolist(), strict=True)) == tokens
    assert batch.tokens == len(tokens)
    assert batch.cu_seqlens.tolist() == [sum(n for n, _ in requests[:r]) for r in range(len(requests) + 1)]
    assert batch.visible(ratio).tolist() == [sum((w + 1) * ratio <= p + 1 for w in range(400)) for _, p in tokens]

    entries = batch.entries(ratio)
    completed = [(r, (p + 1) // ratio - 1) for r, p in tokens if (p + 1) % ratio == 0]
    assert list(zip(entries.request.tolist(), entries.index.tolist(), strict=True)) == completed
    assert entries.positions.tolist() == [w * ratio for _, w in completed]
    assert entries.cu.tolist() == [sum(r < k for r, _ in completed) for k in range(len(requests) + 1)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1], [0, 0], [0]), "1 lengths, 2 starts and 1 slots"),
        (([-1], [0], [0]), "negative"),
        (([1, 1], [0, 0], [3, 3]), "share a slot"),
    ],
)
def test_batch_refuses(arguments: tuple[list[int], ...], text: str) -> None:
    with pytest.raises(ContractError, match=text):
        Batch.build(*arguments)


def test_derived_values_are_made_once_per_owner() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    one, other = Batch.build([1], [0], [0]), torch.arange(3)
    assert [one.derive("a", make), one.derive("a", make), one.derive("b", make)] == [0, 0, 1]
    assert [derived(other, "a", make), derived(other, "a", make)] == [2, 2]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 50), block=st.sampled_from((1, 3, 4)))
def test_rows_follow_the_block_table(seed: int, block: int) -> None:
    cache = lab.cache(4, slots=3, rows=10, seed=seed, block=block)
    cache.block_table[2, -1] = -1
    rows, slots = torch.tensor([0, 9, -1, 4, 10_000, 9]), torch.tensor([0, 1, 1, 2, 0, 2])
    table = cache.block_table.tolist()
    want = [
        -1 if row < 0 or row // block >= len(table[0]) or table[slot][row // block] < 0
        else table[slot][row // block] * block + row % block
        for slot, row in zip(slots.tolist(), rows.tolist(), strict=True)
    ]  # fmt: skip
    assert cache.physical(slots, rows).tolist() == want


def test_rows_come_back_where_they_were_written() -> None:
    cache, values = lab.cache(4, slots=2, rows=9), lab.draw(0).normal(9, 4)
    lab.fill(cache, 1, values)
    where = cache.physical(torch.ones(9, dtype=torch.int64), torch.arange(9))
    assert torch.equal(cache.read(where, torch.float64), values)
    assert torch.equal(cache.canonical(torch.float64).flatten(0, 1)[where], values)
    assert cache.canonical().isnan().any(-1).sum() == cache.pages.shape[0] * 4 - 9
    assert cache.bytes == cache.pages.numel() * 8


def test_state_halves_are_views() -> None:
    state = StateCache.allocate(3, ratio=4, overlap=True, head_dim=5)
    assert state.tensor.shape == (3, 8, 20)
    assert state.tensor.dtype == torch.float32
    state.kv.fill_(1)
    state.score.fill_(2)
    assert state.tensor[..., :10].eq(1).all()
    assert state.tensor[..., 10:].eq(2).all()
    assert state.bytes == 3 * 8 * 20 * 4


def _transformers_rope(kind: str) -> tuple[DeepseekV4RotaryEmbedding, Rope]:
    fraction = {"partial_rotary_factor": 64 / 512}
    compress = {
        "rope_type": "yarn", "rope_theta": 160000.0, "factor": 16.0, "original_max_position_embeddings": 65536,
        "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.0,
    }  # fmt: skip
    main = {"rope_type": "default", "rope_theta": 10000.0}
    config = transformers.DeepseekV4Config(rope_parameters={"main": main | fraction, "compress": compress | fraction})
    rope = Rope(64, 10000.0) if kind == "main" else Rope(64, 160000.0, 16.0, 65536)
    return DeepseekV4RotaryEmbedding(config), rope


@pytest.mark.parametrize("kind", ["main", "compress"])
def test_pitfall_4_theta_and_yarn_differ_per_layer_kind(kind: str) -> None:
    theirs, ours = _transformers_rope(kind)
    torch.testing.assert_close(ours.frequencies(), getattr(theirs, f"{kind}_inv_freq"), rtol=3e-7, atol=0)
    positions = torch.tensor([0, 1, 127, 128, 5000])
    for mine, other in zip(ours.cos_sin(positions), theirs(torch.zeros(1), positions, kind), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-4)
    plain, yarn = Rope(64, 160000.0).frequencies(), Rope(64, 160000.0, 16.0, 65536).frequencies()
    assert torch.equal(plain[:16], yarn[:16])
    assert ((plain / 16 < yarn) & (yarn < plain))[16:25].all()
    torch.testing.assert_close(plain[25:] / 16, yarn[25:], rtol=1e-7, atol=0)


def test_pitfall_7_interleaved_pairs_of_the_last_channels() -> None:
    _, rope = _transformers_rope("main")
    x, positions = lab.draw(3).normal(5, 2, 96).float(), torch.tensor([0, 1, 2, 77, 4000])
    cos, sin = rope.cos_sin(positions)
    mine = rotate(x, cos, sin)
    assert torch.equal(mine[..., :32], x[..., :32])
    assert torch.equal(mine[0], x[0])
    torch.testing.assert_close(mine, apply_rotary_pos_emb(x, cos, sin), rtol=0, atol=1e-6)
    turned = torch.view_as_complex(x[..., 32:].unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)[:, None]
    torch.testing.assert_close(mine[..., 32:], torch.view_as_real(turned).flatten(-2), rtol=0, atol=1e-6)
    torch.testing.assert_close(rotate(mine, cos, sin, inverse=True), x, rtol=0, atol=1e-6)


def test_rotation_rounds_once_and_computes_wide() -> None:
    rope, x = Rope(8, 10000.0), lab.draw(1).normal(6, 8)
    cos, sin = rope.cos_sin(torch.arange(6))
    low = rotate(x.bfloat16(), cos, sin)
    assert torch.equal(low, rotate(x.bfloat16().float(), cos, sin).bfloat16())
    assert rotate(x, cos, sin).dtype == torch.float64
    assert torch.equal(rope.table(6), torch.cat([cos, sin], -1))
    assert rotate(x[:0], cos[:0], sin[:0]).shape == (0, 8)
