"""Caches: requests interleaved, slots and blocks reused, requests saved and restored, full caches."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal.errors import ConfigError
from hal.models.deepseek_v4 import Caches, DeepseekV4, Numerics

from . import conftest as lab

TOLERANCE = 2e-5
CONFIG = lab.tiny()


@pytest.fixture(scope="module")
def model() -> DeepseekV4:
    return DeepseekV4.from_tensors(CONFIG, lab.random_tensors(CONFIG, 3), backend="reference")


def sequence(length: int, seed: int) -> list[int]:
    return lab.random_tokens(CONFIG, length, seed)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**16))
@torch.no_grad()
def test_any_interleaving(model: DeepseekV4, seed: int) -> None:
    """Requests fed in random pieces, in random order and company, over slots and blocks that others used before."""
    rng = random.Random(seed)
    sequences = [sequence(rng.choice((1, 2, 3, 5, 16, 17, 33, 50)), seed + i) for i in range(7)]
    expected = model.logits(sequences)
    caches = model.caches(tokens=160, requests=3, chunk=48, block=8)
    waiting, slots, done = list(range(7)), dict[int, int](), [0] * 7
    got: list[list[torch.Tensor]] = [[] for _ in sequences]
    while waiting or slots:
        while waiting and caches.free_slots and rng.random() < 0.7:
            slots[waiting.pop(0)] = caches.open()
        chosen = [n for n in slots if rng.random() < 0.6]
        rng.shuffle(chosen)
        if not chosen:
            continue
        pieces = {n: sequences[n][done[n] : done[n] + rng.randint(0, 16)] for n in chosen}
        outputs = lab.run(model, caches, [(slots[n], done[n], piece) for n, piece in pieces.items()])
        for (n, piece), output in zip(pieces.items(), outputs, strict=True):
            got[n].append(output)
            done[n] += len(piece)
            if done[n] == len(sequences[n]):
                caches.close(slots.pop(n))
    for rows, right in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.cat(rows), right, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@torch.no_grad()
def test_slot_reuse_after_a_longer_request(model: DeepseekV4, length: int) -> None:
    """A short prompt in a slot that a 41-token request left sees nothing of it: compression windows start anew."""
    caches = model.caches(tokens=64, requests=1)
    slot = caches.open()
    lab.run(model, caches, [(slot, 0, sequence(41, 1))])
    caches.close(slot)
    prompt = sequence(length + 8, 2)
    slot = caches.open()
    first = lab.run(model, caches, [(slot, 0, prompt[:length])])
    rest = [lab.run(model, caches, [(slot, at, [prompt[at]])])[0] for at in range(length, len(prompt))]
    torch.testing.assert_close(torch.cat([*first, *rest]), model.logits([prompt])[0], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_saved_request_continues_bit_for_bit(model: DeepseekV4) -> None:
    """A preempted request, its slot and blocks used by another one meanwhile, continues as if it had never left."""
    text = sequence(60, 4)
    caches = model.caches(tokens=70, requests=3, block=8)
    slot = caches.open()
    lab.run(model, caches, [(slot, 0, text[:37])])
    saved = caches.save(slot)
    right = lab.run(model, caches, [(slot, 37, text[37:])])[0]
    caches.close(slot)

    others = [caches.open(), caches.open()]
    for other in others:
        lab.run(model, caches, [(other, 0, sequence(70, 5))])
        caches.reserve([(other, 70, 70)])
    with pytest.raises(ConfigError, match="does not fit"):
        caches.restore(saved)
    caches.close(others[0])
    again = caches.restore(saved)
    assert torch.equal(lab.run(model, caches, [(again, 37, text[37:])])[0], right)


@torch.no_grad()
def test_window_blocks_come_back(model: DeepseekV4) -> None:
    """A long request holds a window's worth of blocks, not its length's; all blocks are free after it."""
    caches = model.caches(tokens=400, requests=2, chunk=8, block=8)
    assert len(caches.free_blocks) == 3
    before = caches.free_blocks
    slot = caches.open()
    for start in range(0, 320, 8):
        caches.reserve([(slot, start, start + 8)])
        used = before[1] - caches.free_blocks[1]
        assert used <= (CONFIG.sliding_window + 8) // 8 + 1
    caches.close(slot)
    assert caches.free_blocks == before


def test_full_caches_change_nothing(model: DeepseekV4) -> None:
    caches = model.caches(tokens=64, requests=1, chunk=16, block=8)
    slot = caches.open()
    caches.reserve([(slot, 0, 16)])
    before = caches.free_blocks
    with pytest.raises(ConfigError, match="more cache blocks of 8 rows"):
        caches.reserve([(slot, 16, 64)])
    with pytest.raises(ConfigError, match="position 65 of caches for 64 tokens"):
        caches.reserve([(slot, 16, 65)])
    assert caches.free_blocks == before
    with pytest.raises(ConfigError, match="all 1 request slots are taken"):
        caches.open()


def test_zero_tokens(model: DeepseekV4) -> None:
    """A step of no tokens, and a request of none beside another, are legal."""
    caches = model.caches(tokens=8, requests=2)
    slots = [caches.open(), caches.open()]
    (nothing,) = lab.run(model, caches, [(slots[0], 0, [])])
    assert nothing.shape == (0, CONFIG.vocab_size)
    none, some = lab.run(model, caches, [(slots[0], 0, []), (slots[1], 0, [1, 2])])
    assert none.shape == (0, CONFIG.vocab_size)
    torch.testing.assert_close(some, model.logits([[1, 2]])[0], rtol=0, atol=TOLERANCE)


def test_bytes_grow_with_capacity_not_with_width() -> None:
    """Device bytes are the layouts' bytes: compressed rows by tokens / ratio, windows by requests."""
    numerics = Numerics.exact("float32")
    small, large = (Caches(CONFIG, numerics, tokens=tokens, requests=1, chunk=64, block=8) for tokens in (4096, 8192))
    rows = {4: 2 * (CONFIG.head_dim + CONFIG.index_head_dim), 16: CONFIG.head_dim}
    per_token = sum(4 * width / ratio for ratio, width in rows.items())
    assert (large.bytes - small.bytes) / 4096 == per_token
