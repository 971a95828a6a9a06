"""`hal.overlap`: branches on side streams are ordered where they must be, and only there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hal
from hal import overlap
from hal.batch import Batch
from hal.models.deepseek_v4 import DeepseekV4

streams = pytest.importorskip("hal_emulators.streams")
MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny-v4"
CPU = torch.device("cpu")


def test_results_come_in_order_with_and_without_streams() -> None:
    branches = [lambda number=number: torch.tensor(number) for number in range(4)]
    for side in (0, 1, 2, 9):
        assert [int(x) for x in overlap(CPU, side, *branches)] == [0, 1, 2, 3]


def test_independent_branches_do_not_race() -> None:
    with streams.races() as found:
        x = torch.ones(4)
        a, b, c = overlap(CPU, 2, lambda: x + 1, lambda: x * 2, lambda: x - 1)
        total = a + b + c
        x.add_(total)
    assert found == []
    assert total.tolist() == [4.0] * 4


@pytest.mark.parametrize("side", [1, 2])
def test_a_write_beside_a_read_is_a_race(side: int) -> None:
    with streams.races() as found:
        x = torch.ones(4)
        overlap(CPU, side, lambda: x + 1, lambda: x.mul_(2))
    assert [race.second for race in found] == ["aten.mul_.Tensor"]
    assert "test_streams.py" in str(found[0])


def test_two_writes_beside_each_other_are_a_race() -> None:
    cache = torch.zeros(8)
    with streams.races() as found:
        overlap(CPU, 2, lambda: None, lambda: cache[:2].fill_(1), lambda: cache[1:].fill_(2))
    assert len(found) == 1


def test_what_a_branch_derives_is_waited_for() -> None:
    """The first branch makes it, the second one reads it on another stream, and the step after it needs no event."""
    batch = Batch.build([3], [0], [0])
    with streams.races() as found:
        overlap(CPU, 1, lambda: batch.visible(4) + 1, lambda: batch.visible(4) * 2)
        overlap(CPU, 1, lambda: batch.visible(4) + 1, lambda: batch.visible(4) * 2)
    assert found == []


def test_without_the_wait_it_would_be_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal.streams.Mark.wait", lambda _: None)
    batch = Batch.build([3], [0], [0])
    with streams.races() as found:
        overlap(CPU, 1, lambda: batch.visible(4) + 1, lambda: batch.visible(4) * 2)
    assert found


def test_a_failing_branch_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs after an error is ordered behind the side streams all the same."""
    x = torch.ones(4)
    with streams.races() as found:
        with pytest.raises(ZeroDivisionError):
            overlap(CPU, 1, lambda: None, lambda: x.add_(1) / (1 // 0))
        x.add_(1)
    assert found == []


def test_inside_a_branch_there_are_no_more_streams() -> None:
    with streams.races() as found:
        x = torch.ones(4)
        overlap(CPU, 1, lambda: None, lambda: overlap(CPU, 1, lambda: x.add_(1), lambda: x.mul_(2)))
    assert found == []


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_model_has_no_races(backend: str) -> None:
    """Prefill of two requests and a decoding step on three streams: the same logits, and every access ordered."""
    model = DeepseekV4.from_checkpoint(MODEL, backend=backend)
    alone = _logits(model)
    for block in (*model.layers, *model.mtp):
        block.attn.streams = block.ffn.streams = 2
    with streams.races() as found:
        beside = _logits(model)
    assert [str(race) for race in found] == []
    assert torch.equal(alone, beside)


def test_the_model_needs_the_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations and window rows are made by one branch and read by others."""
    monkeypatch.setattr("hal.streams.Mark.wait", lambda _: None)
    model = DeepseekV4.from_checkpoint(MODEL, backend="cpu")
    for block in model.layers:
        block.attn.streams = 2
    with streams.races() as found:
        _logits(model)
    assert found


def _logits(model: DeepseekV4) -> torch.Tensor:
    caches = model.caches(tokens=300, requests=2)
    slots = [caches.open(), caches.open()]
    with torch.no_grad():
        caches.reserve([(slots[0], 0, 140), (slots[1], 0, 9)])
        model(torch.arange(149) % 200, Batch.build([140, 9], [0, 0], slots), caches)
        caches.reserve([(slots[0], 140, 141), (slots[1], 9, 10)])
        streams = model(torch.tensor([5, 7]), Batch.build([1, 1], [140, 9], slots), caches)
        return model.head_logits(streams)


def test_targets_say_how_many_streams_pay() -> None:
    """The model takes its number from the plan's target."""
    model = DeepseekV4.from_checkpoint(MODEL, backend="cpu")
    assert {block.attn.streams for block in model.layers} == {0}
    target = replace(model.plan.target, streams=2)
    assert hal.plan([], target=target).target.streams == 2
