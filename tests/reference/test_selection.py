"""The lightning indexer's references against loops and against transformers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

from hal.batch import Batch
from hal.cache import KVCache
from hal.formats import hadamard_transform
from hal.reference.selection import index_scores, select
from hal.rope import Rope, rotate

from . import lab
from .test_compression import _config

HEADS, DIM, RATIO = 3, 8, 4
ROPE = Rope(4, 160000.0, 16.0, 64)


def _filled(keys: list[Tensor], slots: tuple[int, ...], seed: int = 0) -> KVCache:
    cache = lab.cache(DIM, max(slots, default=0) + 1, max([len(k) for k in keys], default=1), seed)
    for slot, rows in zip(slots, keys, strict=True):
        lab.fill(cache, slot, rows)
    return cache


def score_by_hand(q: Tensor, weights: Tensor, key: Tensor, scale: float) -> float:
    """One token, one entry."""
    dots = [sum(float(a) * float(b) for a, b in zip(head, key, strict=True)) for head in q]
    return scale * sum(float(w) * max(dot, 0.0) for w, dot in zip(weights, dots, strict=True))


@settings(max_examples=30, deadline=None)
@given(schedule=lab.schedules())
def test_scores_of_ragged_batches_equal_loops(schedule: lab.Schedule) -> None:
    draw = lab.draw(schedule.seed)
    keys = [draw.normal(total // RATIO, DIM) for total in schedule.totals]
    cache = _filled(keys, schedule.slots, schedule.seed)
    for batch, fed in schedule.batches():
        q, weights = draw.normal(batch.tokens, HEADS, DIM), draw.normal(batch.tokens, HEADS)
        scores = index_scores(q, weights, batch, cache, ratio=RATIO, scale=0.3)
        tokens = [(r, p) for r, span in fed for p in range(span.start, span.stop)]
        assert scores.shape == (len(tokens), max([(p + 1) // RATIO for _, p in tokens], default=0))
        for at, (request, position) in enumerate(tokens):
            visible = (position + 1) // RATIO
            want = [score_by_hand(q[at], weights[at], keys[request][j], 0.3) for j in range(visible)]
            torch.testing.assert_close(scores[at, :visible], torch.tensor(want).double())
            assert (scores[at, visible:] == -torch.inf).all()


@settings(max_examples=30, deadline=None)
@given(schedule=lab.schedules(), top_k=st.integers(1, 6))
def test_chosen_entries_are_the_best_visible_ones(schedule: lab.Schedule, top_k: int) -> None:
    draw = lab.draw(schedule.seed)
    keys = [draw.normal(total // RATIO, DIM) for total in schedule.totals]
    cache = _filled(keys, schedule.slots, schedule.seed)
    for batch, fed in schedule.batches():
        q, weights = draw.normal(batch.tokens, HEADS, DIM), draw.normal(batch.tokens, HEADS)
        rows = select(q, weights, ROPE, batch, cache, top_k=top_k, ratio=RATIO, hadamard=False, scale=0.3)
        assert rows.dtype == torch.int32
        assert rows.shape == (batch.tokens, top_k)
        turned = rotate(q, *ROPE.cos_sin(batch.positions))
        tokens = [(r, p) for r, span in fed for p in range(span.start, span.stop)]
        for at, (request, position) in enumerate(tokens):
            visible = (position + 1) // RATIO
            scores = [score_by_hand(turned[at], weights[at], keys[request][j], 0.3) for j in range(visible)]
            best = sorted(range(visible), key=lambda j: (-scores[j], j))[:top_k]
            chosen = rows[at].tolist()
            assert chosen[len(best) :] == [-1] * (top_k - len(best))
            assert sorted(chosen[: len(best)]) == sorted(best)


def _select(positions: int, keys: Tensor, top_k: int, q: Tensor | None = None, start: int = 0) -> list[list[int]]:
    q = torch.ones(positions, 1, DIM).double() if q is None else q
    batch, weights = Batch.build([positions], [start], [0]), torch.ones(positions, 1).double()
    cache = _filled([keys], (0,))
    return select(q, weights, ROPE, batch, cache, top_k=top_k, ratio=4, hadamard=False, scale=1.0).tolist()


def test_pitfall_1_completing_token_sees_its_entry() -> None:
    found = _select(9, torch.ones(2, DIM), 3)
    assert [len([j for j in row if j >= 0]) for row in found] == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_equal_scores_go_to_the_lowest_entry() -> None:
    negative = -torch.ones(12, DIM).double()  # relu makes every score exactly 0
    assert _select(1, negative, 5, q=torch.ones(1, 1, DIM).double(), start=47) == [[0, 1, 2, 3, 4]]
    mixed = negative.clone()
    mixed[:, -4:] = 0  # rotated channels
    mixed[7, :4] = 1
    assert _select(1, mixed, 3, start=47) == [[7, 0, 1]]


def test_negative_weights_make_scores_negative() -> None:
    keys = torch.zeros(3, DIM).double()
    keys[:, 0] = torch.tensor([1.0, 3.0, 2.0])
    q = torch.zeros(1, 1, DIM).double()
    q[0, 0, 0] = 1
    batch, weights = Batch.build([1], [11], [0]), -torch.ones(1, 1).double()
    rows = select(q, weights, ROPE, batch, _filled([keys], (0,)), top_k=2, ratio=4, hadamard=False, scale=0.5)
    assert rows.tolist() == [[0, 2]]


def test_transform_on_both_sides_changes_no_score_and_quantised_queries_do() -> None:
    draw = lab.draw(2)
    q, weights, keys = draw.normal(6, 16, 64), draw.normal(6, 16), draw.normal(40, 64)
    batch, rope = Batch.build([6], [150], [0]), Rope(32, 160000.0)
    plain, transformed = (lab.cache(64, 1, 40) for _ in range(2))
    lab.fill(plain, 0, keys)
    lab.fill(transformed, 0, hadamard_transform(keys))
    attributes = {"top_k": 12, "ratio": 4, "scale": 1.0}
    one = select(q, weights, rope, batch, plain, hadamard=False, **attributes)
    other = select(q, weights, rope, batch, transformed, hadamard=True, **attributes)
    assert torch.equal(one.sort().values, other.sort().values)

    quantised = lab.cache(64, 1, 40, name="index_mxfp4_68")
    lab.fill(quantised, 0, hadamard_transform(keys))
    seen: list[Tensor] = []

    class Parts:
        @staticmethod
        def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache) -> Tensor:
            seen.append(q)
            return index_scores(q, weights, batch, cache, ratio=4, scale=1.0)

    select(q, weights, rope, batch, quantised, hadamard=True, parts=Parts(), **attributes)
    assert seen[0].unique().numel() < 200  # e2m1 codes times few scales
    assert seen[0].shape == q.shape


@pytest.mark.parametrize("cuts", [[50], [5, 1, 44]])
def test_chosen_sets_equal_transformers(cuts: list[int]) -> None:
    torch.manual_seed(1)
    config = _config()
    indexer = theirs.DeepseekV4Indexer(config)
    for parameter in indexer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, residual, tokens = torch.randn(50, 24), torch.randn(50, 8), torch.arange(50)
    want = indexer(x[None], residual[None], tokens[None], None, 0)[0]

    from hal.reference.compression import compress

    cache, state = lab.cache(32, 1, 13, name="rows_f32"), lab.state(1, 4, True, 32, torch.float32)
    rope, start, found = Rope(16, 160000.0, 16.0, 65536), 0, []
    for piece, latent in zip(x.split(cuts), residual.split(cuts), strict=True):
        batch = Batch.build([len(piece)], [start], [0])
        compress(
            piece, indexer.kv_proj.weight, indexer.gate_proj.weight, indexer.position_bias, indexer.kv_norm.weight,
            rope, batch, state, cache, ratio=4, overlap=True, hadamard=False, eps=config.rms_norm_eps,
        )  # fmt: skip
        q = indexer.q_b_proj(latent).unflatten(-1, (16, 32))
        weights = indexer.scorer.weights_proj(piece)
        scale = 32**-0.5 * 16**-0.5
        found.append(select(q, weights, rope, batch, cache, top_k=4, ratio=4, hadamard=False, scale=scale))
        start += len(piece)
    assert torch.equal(torch.cat(found).sort().values.long(), want.sort().values)


def test_empty_batches() -> None:
    cache = lab.cache(DIM, 2, 8)
    for batch in (Batch.build([], [], []), Batch.build([0, 0], [0, 30], [1, 0])):
        q, weights = torch.empty(0, HEADS, DIM), torch.empty(0, HEADS)
        rows = select(q, weights, ROPE, batch, cache, top_k=5, ratio=4, hadamard=False, scale=1.0)
        assert rows.shape == (0, 5)
        assert index_scores(q, weights, batch, cache, ratio=4, scale=1.0).shape == (0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_scores_in_float32(dtype: torch.dtype) -> None:
    draw = lab.draw(4)
    q, weights = draw.normal(5, HEADS, DIM).to(dtype), draw.normal(5, HEADS).to(dtype)
    batch, cache = Batch.build([5], [20], [0]), _filled([draw.normal(6, DIM)], (0,))
    low = index_scores(q, weights, batch, cache, ratio=4, scale=1.0)
    high = index_scores(q.double(), weights.double(), batch, cache, ratio=4, scale=1.0)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=1e-5)


def test_gradients_of_scores() -> None:
    draw, batch = lab.draw(9), Batch.build([3, 2], [9, 5], [1, 0])
    inputs = [each.requires_grad_() for each in (draw.normal(5, 2, DIM), draw.normal(5, 2), draw.normal(3, DIM))]

    def scores(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
        cache = lab.cache(DIM, 2, 3)
        lab.fill(cache, 0, keys[:2])
        lab.fill(cache, 1, keys)
        found = index_scores(q, weights, batch, cache, ratio=4, scale=0.7)
        return found[found > -torch.inf]

    assert torch.autograd.gradcheck(scores, inputs)
