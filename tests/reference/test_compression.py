"""The compressor's references against loops over single channels and against transformers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from torch import Tensor
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.formats import hadamard_transform
from hal.reference.compression import compress, compress_pool, store
from hal.rope import Rope

from . import lab

HIDDEN, DIM, EPS = 6, 8, 1e-6
ROPE = Rope(4, 160000.0, 16.0, 64)
KINDS = pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (8, False)])


def weights(seed: int, ratio: int, overlap: bool, dim: int = DIM) -> SimpleNamespace:
    width, draw = dim * (1 + overlap), lab.draw(seed)
    return SimpleNamespace(
        wkv=draw.normal(width, HIDDEN), wgate=draw.normal(width, HIDDEN), ape=draw.normal(ratio, width),
        norm=draw.normal(dim) + 2,
    )  # fmt: skip


def pooled_by_hand(kv: Tensor, score: Tensor, ape: Tensor, ratio: int, overlap: bool, window: int) -> list[float]:
    """One entry, channel by channel, from a request's whole history (`score` without `ape`)."""
    dim = kv.shape[1] // 2 if overlap else kv.shape[1]
    entry = []
    for channel in range(dim):
        own = channel + dim if overlap else channel
        slots = [(p, own) for p in range(window * ratio, window * ratio + ratio)]
        if overlap and window:
            slots += [(p, channel) for p in range((window - 1) * ratio, window * ratio)]
        logits = [float(score[p, c] + ape[p % ratio, c]) for p, c in slots]
        total = sum(math.exp(x) for x in logits)
        entry.append(sum(math.exp(x) / total * float(kv[p, c]) for x, (p, c) in zip(logits, slots, strict=True)))
    return entry


def finished_by_hand(entry: list[float], norm: Tensor, position: int) -> list[float]:
    """Norm and rotation of one entry."""
    rms = math.sqrt(sum(x * x for x in entry) / len(entry) + EPS)
    done = [x / rms * float(w) for x, w in zip(entry, norm, strict=True)]
    first = len(done) - ROPE.dim
    for pair, frequency in enumerate(ROPE.frequencies().tolist()):
        even, odd = done[first + 2 * pair], done[first + 2 * pair + 1]
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        done[first + 2 * pair], done[first + 2 * pair + 1] = even * cos - odd * sin, even * sin + odd * cos
    return done


@KINDS
@settings(max_examples=40, deadline=None)
@given(schedule=lab.schedules())
def test_entries_of_chunked_ragged_requests_equal_loops(schedule: lab.Schedule, ratio: int, overlap: bool) -> None:
    w, draw = weights(schedule.seed, ratio, overlap), lab.draw(schedule.seed + 1)
    xs = [draw.normal(total, HIDDEN) for total in schedule.totals]
    cache = lab.cache(DIM, len(xs) + 1, max(schedule.totals) // ratio, schedule.seed)
    state = lab.state(len(xs) + 1, ratio, overlap, DIM)
    attributes = {"ratio": ratio, "overlap": overlap, "hadamard": False, "eps": EPS}
    for batch, fed in schedule.batches():
        x = torch.cat([xs[r][span] for r, span in fed] or [torch.empty(0, HIDDEN, dtype=torch.float64)])
        compress(x, w.wkv, w.wgate, w.ape, w.norm, ROPE, batch, state, cache, **attributes)

    written = 0
    for request, x in enumerate(xs):
        entries = torch.arange(len(x) // ratio)
        slots = torch.full_like(entries, schedule.slots[request])
        stored = cache.read(cache.physical(slots, entries), torch.float64)
        for window, row in enumerate(stored):
            entry = pooled_by_hand(x @ w.wkv.T, x @ w.wgate.T, w.ape, ratio, overlap, window)
            want = finished_by_hand(entry, w.norm, window * ratio)
            torch.testing.assert_close(row, torch.tensor(want).double(), rtol=1e-6, atol=1e-6)  # float32 angles
        written += len(entries)
    untouched = cache.canonical(torch.float64).isnan().all(-1).sum()
    assert untouched == cache.pages.shape[0] * 4 - written


@KINDS
@settings(max_examples=30, deadline=None)
@given(schedule=lab.schedules())
def test_chunks_pool_as_one_shot_does(schedule: lab.Schedule, ratio: int, overlap: bool) -> None:
    w, draw = weights(schedule.seed, ratio, overlap), lab.draw(schedule.seed)
    width = DIM * (1 + overlap)
    tokens = [(draw.normal(n, width), draw.normal(n, width)) for n in schedule.totals]
    state = lab.state(len(tokens) + 1, ratio, overlap, DIM)
    pieces: list[list[Tensor]] = [[torch.empty(0, DIM, dtype=torch.float64)] for _ in tokens]
    for batch, fed in schedule.batches():
        kv, score = (
            torch.cat([tokens[r][i][span] for r, span in fed] or [torch.empty(0, width).double()]) for i in (0, 1)
        )
        before = kv.clone(), score.clone()
        entries = compress_pool(kv, score, w.ape, batch, state, ratio=ratio, overlap=overlap)
        assert torch.equal(kv, before[0])
        assert torch.equal(score, before[1])
        counts = batch.entries(ratio).cu.diff().tolist()
        for (r, _), piece in zip(fed, entries.split(counts), strict=True):
            pieces[r].append(piece)
    for request, (kv, score) in enumerate(tokens):
        alone = Batch.build([len(kv)], [0], [0])
        once = compress_pool(kv, score, w.ape, alone, lab.state(1, ratio, overlap, DIM), ratio=ratio, overlap=overlap)
        torch.testing.assert_close(torch.cat(pieces[request]), once, rtol=1e-12, atol=1e-12)


def _pool(tokens: int, ratio: int, overlap: bool, state: StateCache | None = None, start: int = 0, **changes: Tensor):
    draw, width = lab.draw(start), DIM * (1 + overlap)
    kv, score, ape = draw.normal(tokens, width), draw.normal(tokens, width), lab.draw(99).normal(ratio, width)
    given = {"kv": kv, "score": score, "ape": ape} | changes
    batch = Batch.build([tokens], [start], [1])
    state = lab.state(2, ratio, overlap, DIM) if state is None else state
    return compress_pool(*given.values(), batch, state, ratio=ratio, overlap=overlap), state, given


@KINDS
def test_pitfall_1_entry_appears_with_the_token_that_completes_it(ratio: int, overlap: bool) -> None:
    assert _pool(ratio - 1, ratio, overlap)[0].shape == (0, DIM)
    assert _pool(ratio, ratio, overlap)[0].shape == (1, DIM)
    assert _pool(2 * ratio - 1, ratio, overlap)[0].shape == (1, DIM)


@KINDS
@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 5])
def test_pitfall_2_short_prompt_in_a_slot_that_another_request_used(ratio: int, overlap: bool, prompt: int) -> None:
    fresh, used = lab.state(2, ratio, overlap, DIM), _pool(40, ratio, overlap)[1]
    assert not used.tensor[1].isnan().any()
    for state in (fresh, used):
        _pool(prompt, ratio, overlap, state)
    first, second = (_pool(3 * ratio, ratio, overlap, state, start=prompt)[0] for state in (fresh, used))
    assert not first.isnan().any()
    assert torch.equal(first, second)


def test_pitfall_2_first_csa_window_weighs_no_predecessor() -> None:
    entries, _, given = _pool(4, 4, overlap=True)
    slots = (given["score"] + given["ape"])[:, DIM:].softmax(0)
    torch.testing.assert_close(entries[0], (slots * given["kv"][:, DIM:]).sum(0))


@KINDS
def test_pitfall_3_entry_is_rotated_by_its_windows_first_position(ratio: int, overlap: bool) -> None:
    w, x = weights(3, ratio, overlap), lab.draw(4).normal(3 * ratio, HIDDEN)
    stored = []
    for rope in (ROPE, Rope(4, 1e30)):  # the second one barely turns its second pair, and the first by radians
        cache, state = lab.cache(DIM, 1, 3), lab.state(1, ratio, overlap, DIM)
        attributes = {"ratio": ratio, "overlap": overlap, "hadamard": False, "eps": EPS}
        compress(x, w.wkv, w.wgate, w.ape, w.norm, rope, Batch.build([len(x)], [0], [0]), state, cache, **attributes)
        stored.append(cache.read(cache.physical(torch.zeros(3, dtype=torch.int64), torch.arange(3)), torch.float64))
    pairs = [torch.view_as_complex(rows[:, -4:].unflatten(-1, (2, 2)).contiguous())[:, 1] for rows in stored]
    angles = (torch.arange(3) * ratio * ROPE.frequencies()[1]).double()
    want = torch.polar(torch.ones(3).double(), angles)
    torch.testing.assert_close(pairs[0] / pairs[1], want, rtol=0, atol=1e-6)


@KINDS
def test_pitfall_5_state_holds_scores_with_ape_added_once(ratio: int, overlap: bool) -> None:
    _, state, given = _pool(ratio - 1, ratio, overlap)
    kept = state.tensor[1, : ratio - 1]
    torch.testing.assert_close(kept, torch.cat([given["kv"], given["score"] + given["ape"][: ratio - 1]], -1))
    twice, _, _ = _pool(1, ratio, overlap, state, start=ratio - 1)
    last = lab.draw(ratio - 1)
    new_kv, new_score = last.normal(1, kept.shape[1] // 2), last.normal(1, kept.shape[1] // 2)
    both = torch.cat([given["kv"], new_kv]), torch.cat([given["score"], new_score])
    once = _pool(ratio, ratio, overlap, kv=both[0], score=both[1])[0]
    torch.testing.assert_close(twice, once)


@KINDS
def test_pitfall_6_ape_goes_by_position_not_by_place_in_the_chunk(ratio: int, overlap: bool) -> None:
    _, state, given = _pool(2, ratio, overlap, start=ratio - 1)
    rows = torch.tensor([ratio - 1, ratio % state.tensor.shape[1]])
    want = given["score"] + given["ape"][[ratio - 1, 0]]
    torch.testing.assert_close(state.score[1, rows], want)


def test_pitfall_8_softmax_runs_over_slots_for_each_channel() -> None:
    score = torch.zeros(8, DIM).double()
    score[3, 0], score[5, 1] = 100.0, 100.0
    entries, _, given = _pool(8, 8, False, score=score, ape=torch.zeros(8, DIM).double())
    kv = given["kv"]
    torch.testing.assert_close(entries[0], torch.cat([kv[3, :1], kv[5, 1:2], kv[:, 2:].mean(0)]))


@KINDS
def test_only_the_last_rows_of_the_slot_change(ratio: int, overlap: bool) -> None:
    state = lab.state(3, ratio, overlap, DIM)
    _pool(2, ratio, overlap, state, start=1)
    changed = ~state.tensor.isnan().all(-1)
    assert changed.nonzero().tolist() == [[1, 1], [1, 2]]
    _pool(5 * ratio, ratio, overlap, state)
    assert not state.tensor[1].isnan().any()
    assert state.tensor[[0, 2]].isnan().all()


def _config(**changes: object) -> transformers.DeepseekV4Config:
    fraction = {"partial_rotary_factor": 16 / 32}
    yarn = {
        "rope_type": "yarn", "rope_theta": 160000.0, "factor": 16.0, "original_max_position_embeddings": 65536,
        "attention_factor": 1.0,
    }  # fmt: skip
    return transformers.DeepseekV4Config(
        hidden_size=24, head_dim=32, index_head_dim=32, index_n_heads=16, index_topk=4, q_lora_rank=8,
        num_attention_heads=4, num_hidden_layers=2, 
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        layer_types=["compressed_sparse_attention", "heavily_compressed_attention"],
        rope_parameters={"main": {"rope_type": "default", "rope_theta": 1e4} | fraction, "compress": yarn | fraction},
        sliding_window=8, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["csa", "hca"])
@pytest.mark.parametrize("cuts", [[50], [3, 1, 30, 16], [1] * 50])
def test_entries_equal_transformers(kind: str, cuts: list[int]) -> None:
    torch.manual_seed(0)
    config = _config()
    module = (theirs.DeepseekV4CSACompressor if kind == "csa" else theirs.DeepseekV4HCACompressor)(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ratio, overlap = (4, True) if kind == "csa" else (16, False)
    x = torch.randn(sum(cuts), 24)
    want, _ = module(x[None], torch.randn(1, sum(cuts), 8), torch.arange(sum(cuts))[None], None, 0)

    cache, state = lab.cache(32, 1, 13, name="rows_f32"), lab.state(1, ratio, overlap, 32, torch.float32)
    rope = Rope(16, 160000.0, 16.0, 65536)
    start = 0
    for piece in x.split(cuts):
        batch = Batch.build([len(piece)], [start], [0])
        compress(
            piece, module.kv_proj.weight, module.gate_proj.weight, module.position_bias, module.kv_norm.weight, rope,
            batch, state, cache, ratio=ratio, overlap=overlap, hadamard=False, eps=config.rms_norm_eps,
        )  # fmt: skip
        start += len(piece)
    entries = torch.arange(want.shape[2])
    stored = cache.read(cache.physical(torch.zeros_like(entries), entries))
    torch.testing.assert_close(stored, want[0, 0], rtol=0, atol=1e-5)


def test_store_writes_named_rows_and_nothing_else() -> None:
    draw = lab.draw(5)
    values, norm, positions = draw.normal(4, DIM), draw.normal(DIM), torch.tensor([5, 0, 700, 9])
    values[1] = torch.nan
    cache = lab.cache(DIM, 1, 8)
    store(values, norm, ROPE, positions, torch.tensor([6, -1, 0, 3]), cache, hadamard=False, eps=EPS)
    rows = cache.canonical(torch.float64).flatten(0, 1)
    assert (~rows.isnan().any(-1)).nonzero().flatten().tolist() == [0, 3, 6]
    for row, at in ((6, 0), (0, 2), (3, 3)):
        want = finished_by_hand(values[at].tolist(), norm, int(positions[at])), values[at].tolist()
        torch.testing.assert_close(rows[row], torch.tensor(want[0]).double(), rtol=1e-6, atol=1e-6)
    store(values[:1], None, ROPE, torch.zeros(1).long(), torch.tensor([1]), cache, hadamard=False, eps=EPS)
    assert torch.equal(cache.canonical(torch.float64).flatten(0, 1)[1], values[0])


def test_store_transforms_after_rotating() -> None:
    draw, cache, plain = lab.draw(6), lab.cache(DIM, 1, 4), lab.cache(DIM, 1, 4)
    values, positions, slots = draw.normal(3, DIM), torch.tensor([3, 8, 1]), torch.arange(3)
    store(values, None, ROPE, positions, slots, cache, hadamard=True, eps=EPS)
    store(values, None, ROPE, positions, slots, plain, hadamard=False, eps=EPS)
    rotated = plain.read(slots, torch.float64)
    torch.testing.assert_close(cache.read(slots, torch.float64), hadamard_transform(rotated))
    torch.testing.assert_close(cache.read(slots, torch.float64).norm(dim=-1), values.norm(dim=-1))


def test_empty_batches_do_nothing() -> None:
    for overlap in (True, False):
        w, state, cache = weights(0, 4, overlap), lab.state(2, 4, overlap, DIM), lab.cache(DIM, 2, 4)
        for batch in (Batch.build([], [], []), Batch.build([0, 0], [0, 7], [1, 0])):
            x = torch.empty(0, HIDDEN).double()
            attributes = {"ratio": 4, "overlap": overlap, "hadamard": True, "eps": EPS}
            compress(x, w.wkv, w.wgate, w.ape, w.norm, ROPE, batch, state, cache, **attributes)
        assert state.tensor.isnan().all()
        assert cache.pages.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@KINDS
def test_lower_precision_stays_near_float64(dtype: torch.dtype, ratio: int, overlap: bool) -> None:
    w, x = weights(1, ratio, overlap), lab.draw(2).normal(5 * ratio, HIDDEN).to(dtype)
    found = []
    for kind, rows in ((torch.float64, "rows_f64"), (dtype, "rows_f32")):
        cache = lab.cache(DIM, 1, 5, name=rows)
        state = lab.state(1, ratio, overlap, DIM, torch.float64 if kind == torch.float64 else torch.float32)
        compress(
            x.to(kind), w.wkv.to(dtype).to(kind), w.wgate.to(dtype).to(kind), w.ape, w.norm, ROPE,
            Batch.build([len(x)], [0], [0]), state, cache, ratio=ratio, overlap=overlap, hadamard=False, eps=EPS,
        )  # fmt: skip
        found.append(cache.read(cache.physical(torch.zeros(5).long(), torch.arange(5)), torch.float64))
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)


@KINDS
def test_gradients(ratio: int, overlap: bool) -> None:
    w, x = weights(7, ratio, overlap), lab.draw(8).normal(2 * ratio + 1, HIDDEN)

    def entries(x: Tensor, wkv: Tensor, wgate: Tensor, ape: Tensor, norm: Tensor) -> Tensor:
        cache, state = lab.cache(DIM, 1, 2), lab.state(1, ratio, overlap, DIM)
        for start, piece in ((0, x[: ratio + 1]), (ratio + 1, x[ratio + 1 :])):
            batch = Batch.build([len(piece)], [start], [0])
            attributes = {"ratio": ratio, "overlap": overlap, "hadamard": True, "eps": EPS}
            compress(piece, wkv, wgate, ape, norm, ROPE, batch, state, cache, **attributes)
        return cache.read(cache.physical(torch.zeros(2).long(), torch.arange(2)), torch.float64)

    inputs = [each.requires_grad_() for each in (x, w.wkv, w.wgate, w.ape, w.norm)]
    assert torch.autograd.gradcheck(entries, inputs)


def test_parts_may_be_replaced() -> None:
    seen: list[str] = []
    w, cache, state = weights(0, 4, True), lab.cache(DIM, 1, 4), lab.state(1, 4, True, DIM)
    parts = SimpleNamespace(
        compress_pool=lambda *a: seen.append("pool") or compress_pool(*a, ratio=4, overlap=True),
        store=lambda *a: seen.append("store") or store(*a, hadamard=False, eps=EPS),
    )
    made: list[KVCache] = []
    for own in (parts, None):
        made.append(lab.cache(DIM, 1, 4))
        compress(
            lab.draw(1).normal(9, HIDDEN), w.wkv, w.wgate, w.ape, w.norm, ROPE, Batch.build([9], [0], [0]), state,
            made[-1], ratio=4, overlap=True, hadamard=False, eps=EPS, parts=own,
        )  # fmt: skip
    assert seen == ["pool", "store"]
    torch.testing.assert_close(made[0].pages, made[1].pages, equal_nan=True)
    assert cache.pages.isnan().all()


@KINDS
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_pitfall_18_a_saved_state_continues_in_another_slot(ratio: int, overlap: bool, cut: int) -> None:
    draw, width = lab.draw(cut), DIM * (1 + overlap)
    kv, score, ape = draw.normal(30, width), draw.normal(30, width), draw.normal(ratio, width)
    attributes = {"ratio": ratio, "overlap": overlap}
    once = compress_pool(kv, score, ape, Batch.build([30], [0], [0]), lab.state(1, ratio, overlap, DIM), **attributes)
    here, there = lab.state(1, ratio, overlap, DIM), lab.state(3, ratio, overlap, DIM)
    first = compress_pool(kv[:cut], score[:cut], ape, Batch.build([cut], [0], [0]), here, **attributes)
    there.tensor[2] = here.tensor[0]
    rest = Batch.build([30 - cut], [cut], [2])
    second = compress_pool(kv[cut:], score[cut:], ape, rest, there, **attributes)
    torch.testing.assert_close(torch.cat([first, second]), once)
