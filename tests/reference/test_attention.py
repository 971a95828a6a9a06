"""The attention reference against loops over single queries and against transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

from hal.batch import Batch
from hal.cache import KVCache
from hal.reference.attention import attend

from . import lab

HEADS, DIM = 2, 8
KINDS = pytest.mark.parametrize("kind", ["swa", "csa", "hca"])


def query_by_hand(q: Tensor, rows: list[Tensor], sink: float | None, scale: float) -> tuple[list[float], float]:
    """One head of one query over its rows: out and lse."""
    logits = [scale * sum(float(a) * float(b) for a, b in zip(q, row, strict=True)) for row in rows]
    if not rows:
        return [0.0] * len(q), math.inf
    total = sum(math.exp(x) for x in logits)
    below = total + (math.exp(sink) if sink is not None else 0.0)
    out = [sum(math.exp(x) / below * float(row[c]) for x, row in zip(logits, rows, strict=True)) for c in range(len(q))]
    return out, math.log(total)


@KINDS
@settings(max_examples=25, deadline=None)
@given(
    schedule=lab.schedules(), size=st.sampled_from((0, 1, 3, 8, 50)), with_sink=st.booleans(), data=st.integers(0, 99)
)
def test_ragged_batches_equal_loops(schedule: lab.Schedule, kind: str, size: int, with_sink: bool, data: int) -> None:
    draw, ratio = lab.draw(schedule.seed), {"swa": 0, "csa": 4, "hca": 3}[kind]
    near = [draw.normal(total, DIM) for total in schedule.totals]
    far = [draw.normal(total // ratio if ratio else 0, DIM) for total in schedule.totals]
    requests = len(near)
    window = lab.cache(DIM, requests + 1, max(schedule.totals), schedule.seed)
    compressed = lab.cache(DIM, requests + 1, 20, data)
    for slot, tokens, entries in zip(schedule.slots, near, far, strict=True):
        lab.fill(window, slot, tokens)
        lab.fill(compressed, slot, entries)
    sink = draw.normal(HEADS) if with_sink else None
    for batch, fed in schedule.batches():
        q, top_k = draw.normal(batch.tokens, HEADS, DIM), 5
        rows = None
        if kind == "csa":  # repeated entries, -1 anywhere, and where nothing is visible
            rows = draw.integers(20, batch.tokens, top_k) - 2
            rows = torch.where(rows < batch.visible(ratio)[:, None], rows, -1).clamp_min(-1).int()
        out, lse = attend(
            q, window, compressed if ratio else None, rows, sink, batch, scale=0.4, window_size=size, ratio=ratio
        )
        assert out.shape == q.shape
        tokens = [(r, p) for r, span in fed for p in range(span.start, span.stop)]
        for at, (request, position) in enumerate(tokens):
            seen = [near[request][j] for j in range(max(0, position - size + 1), position + 1)]
            if kind == "csa":
                seen += [far[request][j] for j in rows[at].tolist() if j >= 0]
            elif kind == "hca":
                seen += [far[request][j] for j in range((position + 1) // ratio)]
            for head in range(HEADS):
                want, lse_want = query_by_hand(q[at, head], seen, float(sink[head]) if with_sink else None, 0.4)
                torch.testing.assert_close(out[at, head], torch.tensor(want).double())
                torch.testing.assert_close(float(lse[at, head]), lse_want)


def _world(seed: int = 0, tokens: int = 30, entries: int = 7) -> dict[str, Any]:
    draw = lab.draw(seed)
    window, compressed = lab.cache(DIM, 2, tokens, seed), lab.cache(DIM, 2, entries, seed + 1)
    lab.fill(window, 1, draw.normal(tokens, DIM))
    lab.fill(compressed, 1, draw.normal(entries, DIM))
    return {"draw": draw, "window": window, "compressed": compressed}


def _attend(
    world: dict[str, Any], q: Tensor, start: int, rows: list[list[int]] | None = None, sink: Tensor | None = None,
    size: int = 4, ratio: int = 4, compressed: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    listed = None if rows is None else torch.tensor(rows, dtype=torch.int32).view(len(q), -1)
    return attend(
        q, world["window"], world["compressed"] if compressed else None, listed, sink,
        Batch.build([len(q)], [start], [1]), scale=0.5, window_size=size, ratio=ratio,
    )  # fmt: skip


def test_pitfall_1_query_sees_the_entry_it_completes() -> None:
    world = _world()
    q = world["draw"].normal(1, HEADS, DIM)
    assert _attend(world, q, 2, size=0)[1].isinf().all()
    prefix, listed = _attend(world, q, 3, size=0), _attend(world, q, 3, rows=[[0]], size=0)
    torch.testing.assert_close(prefix, listed)
    assert prefix[1].isfinite().all()


def test_window_holds_the_query_itself_and_its_predecessors() -> None:
    world = _world()
    q = world["draw"].normal(1, HEADS, DIM)
    own = world["window"].read(world["window"].physical(torch.tensor([1]), torch.tensor([9])), torch.float64)
    out, _ = _attend(world, q, 9, size=1, ratio=0, compressed=False)
    torch.testing.assert_close(out, own[:, None].expand_as(out))
    few, all_of_them = (_attend(world, q, 9, size=n, ratio=0, compressed=False)[0] for n in (9, 10))
    assert not torch.allclose(few, all_of_them)
    torch.testing.assert_close(_attend(world, q, 9, size=500, ratio=0, compressed=False)[0], all_of_them)


def test_pitfall_9_sink_counts_once_when_two_passes_are_merged() -> None:
    world = _world()
    q, sink = world["draw"].normal(3, HEADS, DIM), world["draw"].normal(HEADS)
    rows = [[0, 4], [2, 5], [6, 1]]
    once, lse = _attend(world, q, 27, rows, sink)
    near, near_lse = _attend(world, q, 27, ratio=0, compressed=False)
    far, far_lse = _attend(world, q, 27, rows, size=0)
    merged_lse = torch.logaddexp(near_lse, far_lse)
    torch.testing.assert_close(lse, merged_lse)  # the sink is not part of it
    merged = near * (near_lse - merged_lse).exp()[..., None] + far * (far_lse - merged_lse).exp()[..., None]
    torch.testing.assert_close(once, merged * torch.sigmoid(merged_lse - sink)[..., None])


def test_sink_takes_weight_and_gives_no_value() -> None:
    world = _world()
    q = world["draw"].normal(2, HEADS, DIM)
    without, lse = _attend(world, q, 20)
    large, same = _attend(world, q, 20, sink=torch.full((HEADS,), 200.0))
    small, _ = _attend(world, q, 20, sink=torch.full((HEADS,), -torch.inf))
    torch.testing.assert_close(large, torch.zeros_like(large))
    torch.testing.assert_close(small, without)
    torch.testing.assert_close(same, lse)
    huge = torch.full((HEADS,), 1e30)
    assert not _attend(world, q, 20, sink=huge)[0].isnan().any()


@pytest.mark.parametrize("sink", [None, torch.zeros(HEADS), torch.full((HEADS,), -torch.inf)])
def test_query_that_sees_nothing(sink: Tensor | None) -> None:
    world = _world()
    q = world["draw"].normal(2, HEADS, DIM)
    out, lse = _attend(world, q, 20, [[-1, -1, -1], [-1, 3, -1]], sink, size=0)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert (lse[0] == torch.inf).all()
    assert lse[1].isfinite().all()
    nothing, lse = _attend(world, q, 20, sink=sink, size=0, ratio=0, compressed=False)
    assert not nothing.any()
    assert (lse == torch.inf).all()
    assert _attend(world, q, 20, rows=[[], []], sink=sink, size=0)[1].eq(torch.inf).all()


@pytest.mark.parametrize("lead", [64, 200])
def test_pitfall_10_masked_first_block(lead: int) -> None:
    world = _world()
    q = world["draw"].normal(1, HEADS, DIM)
    for size in (0, 4):
        plain = _attend(world, q, 28, [[0, 5, 3]], size=size)
        late = _attend(world, q, 28, [[-1] * lead + [0, 5, 3]], size=size)
        torch.testing.assert_close(late, plain)


@settings(max_examples=50, deadline=None)
@given(places=st.permutations(range(9)), size=st.sampled_from((0, 4)))
def test_pitfall_11_minus_one_anywhere(places: list[int], size: int) -> None:
    world = _world()
    q = world["draw"].normal(1, HEADS, DIM)
    rows = [0, 6, 2, 4, -1, -1, -1, -1, -1]
    torch.testing.assert_close(
        _attend(world, q, 28, [[rows[p] for p in places]], size=size), _attend(world, q, 28, [rows], size=size)
    )


def test_entry_counts_as_often_as_it_is_listed() -> None:
    world = _world()
    q = world["draw"].normal(1, HEADS, DIM)
    once, twice = _attend(world, q, 28, [[3]], size=0), _attend(world, q, 28, [[3, 3]], size=0)
    torch.testing.assert_close(once[0], twice[0])
    torch.testing.assert_close(once[1] + math.log(2), twice[1])


def test_all_visible_rows_listed_equal_the_prefix() -> None:
    world = _world()
    q, sink = world["draw"].normal(2, HEADS, DIM), world["draw"].normal(HEADS)
    listed = _attend(world, q, 26, [[5, 1, 3, 0, 2, 4, -1], [5, 1, 3, 0, 2, 4, 6]], sink)
    torch.testing.assert_close(listed, _attend(world, q, 26, sink=sink))


@KINDS
def test_unused_rows_and_other_requests_do_not_matter(kind: str) -> None:
    ratio = {"swa": 0, "csa": 4, "hca": 4}[kind]
    found = []
    for junk in (torch.nan, 1e30):
        world = _world()
        for cache in (world["window"], world["compressed"]):
            cache.pages[cache.pages.isnan()] = junk
        for row in range(10, 16):  # positions that no query of this batch sees any more
            where = world["window"].physical(torch.tensor([1]), torch.tensor([row]))
            world["window"].pages.view(-1, DIM)[where] = junk
        q = lab.draw(7).normal(3, HEADS, DIM)
        rows = [[0, 5], [5, -1], [-1, 2]] if kind == "csa" else None
        found.append(_attend(world, q, 24, rows, torch.zeros(HEADS), ratio=ratio, compressed=bool(ratio)))
    assert not found[0][0].isnan().any()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@KINDS
def test_pitfall_19_packed_requests_equal_single_ones(kind: str) -> None:
    draw, ratio = lab.draw(3), {"swa": 0, "csa": 4, "hca": 4}[kind]
    window, compressed = lab.cache(DIM, 3, 40), lab.cache(DIM, 3, 10)
    for slot in range(3):
        lab.fill(window, slot, draw.normal(40, DIM))
        lab.fill(compressed, slot, draw.normal(10, DIM))
    lengths, starts, slots = [5, 1, 38], [0, 33, 0], [2, 0, 1]
    q = draw.normal(sum(lengths), HEADS, DIM)
    packed = Batch.build(lengths, starts, slots)
    rows = (
        torch.where(draw.integers(10, len(q), 4) < packed.visible(4)[:, None], 0, -1).int() if kind == "csa" else None
    )
    far = compressed if ratio else None
    attributes = {"scale": 0.3, "window_size": 7, "ratio": ratio}
    out, lse = attend(q, window, far, rows, None, packed, **attributes)
    begin = 0
    for length, start, slot in zip(lengths, starts, slots, strict=True):
        own = slice(begin, begin + length)
        alone = Batch.build([length], [start], [slot])
        one = attend(q[own], window, far, None if rows is None else rows[own], None, alone, **attributes)
        torch.testing.assert_close((out[own], lse[own]), one)
        begin += length


class _Attention(torch.nn.Module):
    """What transformers' eager attention reads from its module."""

    def __init__(self, heads: int, sinks: Tensor) -> None:
        super().__init__()
        self.num_key_value_groups, self.sinks = heads, sinks


@KINDS
def test_out_equals_transformers(kind: str) -> None:
    draw, tokens, heads, dim, ratio = lab.draw(11), 60, 4, 32, {"swa": 0, "csa": 4, "hca": 16}[kind]
    q, kv, sinks = draw.normal(tokens, heads, dim).float(), draw.normal(tokens, dim).float(), draw.normal(heads).float()
    entries = draw.normal(tokens // ratio if ratio else 0, dim).float()
    window = lab.cache(dim, 1, tokens, name="rows_f32")
    compressed = lab.cache(dim, 1, max(1, len(entries)), name="rows_f32")
    lab.fill(window, 0, kv)
    lab.fill(compressed, 0, entries)
    batch, at = Batch.build([tokens], [0], [0]), torch.arange(tokens)
    mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - 8)
    rows = None
    if ratio:
        seen = torch.arange(len(entries)) < batch.visible(ratio)[:, None]
        if kind == "csa":
            seen &= draw.integers(2, *seen.shape).bool()
            rows = torch.where(seen, torch.arange(len(entries)), -1).int()
        mask = torch.cat([mask, seen], 1)
    keys = torch.cat([kv, entries])[None, None]
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None]
    want, _ = theirs.eager_attention_forward(
        _Attention(heads, sinks), q.transpose(0, 1)[None], keys, keys, bias, scaling=dim**-0.5
    )
    out, _ = attend(
        q, window, compressed if ratio else None, rows, sinks, batch, scale=dim**-0.5, window_size=8, ratio=ratio
    )
    torch.testing.assert_close(out, want[0], rtol=0, atol=2e-6)


def test_empty_batches() -> None:
    cache = lab.cache(DIM, 2, 8)
    for batch in (Batch.build([], [], []), Batch.build([0, 0], [0, 30], [1, 0])):
        for rows in (None, torch.empty(0, 4, dtype=torch.int32)):
            out, lse = attend(
                torch.empty(0, HEADS, DIM), cache, cache, rows, None, batch, scale=1.0, window_size=4, ratio=4
            )
            assert out.shape == (0, HEADS, DIM)
            assert lse.shape == (0, HEADS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@KINDS
def test_lower_precision_computes_in_float32_and_rounds_once(dtype: torch.dtype, kind: str) -> None:
    world = _world()
    q = world["draw"].normal(3, HEADS, DIM).to(dtype)
    rows, ratio = [[0, 5], [5, -1], [-1, 2]] if kind == "csa" else None, 0 if kind == "swa" else 4
    low = _attend(world, q, 24, rows, ratio=ratio, compressed=bool(ratio))
    wide = _attend(world, q.float(), 24, rows, ratio=ratio, compressed=bool(ratio))
    high = _attend(world, q.double(), 24, rows, ratio=ratio, compressed=bool(ratio))
    assert low[0].dtype == dtype
    assert low[1].dtype == torch.float32
    assert torch.equal(low[0], wide[0].to(dtype))
    torch.testing.assert_close(wide[0].double(), high[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low[1].double(), high[1], rtol=1e-5, atol=1e-5)


@KINDS
def test_gradients(kind: str) -> None:
    draw, ratio = lab.draw(5), 0 if kind == "swa" else 4
    inputs = [draw.normal(3, HEADS, DIM), draw.normal(12, DIM), draw.normal(3, DIM), draw.normal(HEADS)]
    rows = torch.tensor([[0, -1], [-1, -1], [2, 0]], dtype=torch.int32) if kind == "csa" else None

    def run(q: Tensor, near: Tensor, far: Tensor, sink: Tensor) -> tuple[Tensor, ...]:
        window, compressed = lab.cache(DIM, 1, 12), lab.cache(DIM, 1, 3)
        lab.fill(window, 0, near)
        lab.fill(compressed, 0, far)
        out, lse = attend(
            q, window, compressed if ratio else None, rows, sink, Batch.build([3], [9], [0]),
            scale=0.5, window_size=4, ratio=ratio,
        )  # fmt: skip
        return out, lse

    assert torch.autograd.gradcheck(run, [each.requires_grad_() for each in inputs])


def test_gradient_of_a_lonely_query_is_zero() -> None:
    world = _world()
    q = world["draw"].normal(2, HEADS, DIM).requires_grad_()
    sink = torch.zeros(HEADS, requires_grad=True)
    out, _ = _attend(world, q, 20, [[-1, -1], [-1, 3]], sink, size=0)
    out.square().sum().backward()
    assert not q.grad[0].any()
    assert q.grad[1].any()
    assert sink.grad.isfinite().all()


def test_memory_follows_what_queries_see(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = KVCache.read

    def counted(self: KVCache, physical: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        read.append(len(physical))
        return plain(self, physical, dtype)

    monkeypatch.setattr(KVCache, "read", counted)
    tokens, window = 1000, lab.cache(DIM, 1, 1000)
    lab.fill(window, 0, torch.zeros(tokens, DIM))
    batch = Batch.build([tokens], [0], [0])
    attend(torch.zeros(tokens, 1, DIM), window, None, None, None, batch, scale=1.0, window_size=16, ratio=0)
    assert max(read) <= 64 + 16
