"""Experts shared by several processes give what one process gives, bit for bit."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hal.dispatched import Dispatched
from hal.distributed import TorchGroup
from hal.errors import ContractError
from hal.formats import prepare
from hal.reference.experts import dispatch, ffn

from . import lab

HIDDEN, INTER, TOP_K = 32, 16, 3


@dataclass
class ThreadGroup:
    """A group whose processes are threads: mailboxes instead of a network."""

    rank: int
    size: int
    mail: dict[tuple[int, int], queue.Queue[Tensor]] = field(repr=False)
    process_group: Any = None

    def all_to_all(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        for other, piece in enumerate(rows.split(list(sent))):
            self.mail[self.rank, other].put(piece)
        pieces = [self.mail[other, self.rank].get(timeout=60) for other in range(self.size)]
        assert [len(piece) for piece in pieces] == list(received)
        return torch.cat(pieces)


def on_threads(size: int, work: Callable[[ThreadGroup], Any]) -> list[Any]:
    mail: dict[tuple[int, int], queue.Queue[Tensor]] = {(a, b): queue.Queue() for a in range(size) for b in range(size)}
    results: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, size, mail))
        except Exception as error:  # handed to the caller below
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def problem(rank: int, size: int, seed: int, activation: str) -> dict[str, Any]:
    """What a process is given: its own tokens (possibly none), and its share of 2 experts per process."""
    draw, experts = lab.draw(100 * seed + rank), 2 * size
    tokens = int(draw.integers(6, 1)) if seed % 3 else 4 * rank
    ids = draw.normal(tokens, experts).argsort(-1)[:, : min(TOP_K, experts)].int()
    ids = torch.where(draw.integers(5, *ids.shape) == 0, -1, ids)
    if seed % 2:
        ids = torch.where(ids == 1, -1, ids)  # an expert without rows
    everywhere = lab.draw(seed)
    stacks = everywhere.normal(experts, 2 * INTER, HIDDEN) / 4, everywhere.normal(experts, HIDDEN, INTER) / 4
    return {
        "x": draw.normal(tokens, HIDDEN).bfloat16(), "ids": ids, "weights": draw.normal(*ids.shape).abs().float(),
        "residual": draw.normal(tokens, HIDDEN).bfloat16(), "experts": experts, "activation": activation,
        "w13": stacks[0], "w2": stacks[1],
    }  # fmt: skip


SAME = {"rtol": 1e-5, "atol": 1e-5}  # quantisers take float32: a last bit may differ


def layer(given: dict[str, Any], group: Any) -> Tensor:
    """The layer on `group`, or on one process; in float64, where products of more rows at once round alike."""
    own = slice(None) if group is None else slice(2 * group.rank, 2 * group.rank + 2)
    w13, w2 = (prepare(given[name][own], "bf16") for name in ("w13", "w2"))
    return ffn(
        given["x"].double(), given["ids"], given["weights"], w13, w2, given["residual"].double(), group,
        experts=given["experts"], clamp=2.0, activation=given["activation"],
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 4), seed=st.integers(0, 30), activation=st.sampled_from(("none", "e4m3_32", "int8_token")))
def test_processes_change_nothing(size: int, seed: int, activation: str) -> None:
    shared = on_threads(size, lambda group: layer(problem(group.rank, size, seed, activation), group))
    for rank, got in enumerate(shared):
        torch.testing.assert_close(got, layer(problem(rank, size, seed, activation), None), **SAME)


def test_rows_arrive_grouped_by_expert_and_by_source() -> None:
    ids = {0: [[0, 3], [2, 1]], 1: [[3, 0], [-1, 2]]}

    def work(group: ThreadGroup) -> Dispatched:
        x = torch.tensor([[10.0 * group.rank], [10.0 * group.rank + 1]])
        weights = torch.tensor([[0.1, 0.2], [0.3, 0.4]]) + group.rank
        chosen = torch.tensor(ids[group.rank], dtype=torch.int32)
        return dispatch(x, chosen, weights, group, experts=4, activation="none")

    first, second = on_threads(2, work)
    assert first.counts.tolist() == [2, 1]
    assert first.rows.flatten().tolist() == [0.0, 10.0, 1.0]
    torch.testing.assert_close(first.weights, torch.tensor([0.1, 1.2, 0.4]))
    assert second.counts.tolist() == [2, 2]
    assert second.rows.flatten().tolist() == [1.0, 11.0, 0.0, 10.0]
    torch.testing.assert_close(second.weights, torch.tensor([0.3, 1.4, 0.2, 1.1]))


def test_experts_must_divide_among_processes() -> None:
    def work(group: ThreadGroup) -> Dispatched:
        ids = torch.zeros(1, 1, dtype=torch.int32)
        return dispatch(torch.zeros(1, 4), ids, torch.ones(1, 1), group, experts=3, activation="none")

    with pytest.raises(ContractError, match="3 experts do not divide among 2 processes"):
        on_threads(2, work)


def _process(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        group = TorchGroup()
        assert (group.rank, group.size, group.process_group) == (rank, size, None)
        for seed, activation in ((1, "none"), (2, "e4m3_32"), (3, "e2m1_32"), (4, "int8_token")):
            given = problem(rank, size, seed, activation)
            torch.testing.assert_close(layer(given, group), layer(given, None), **SAME)
        Path(folder, f"done-{rank}").touch()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_processes_over_gloo(size: int, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_process, (size, str(tmp_path)), nprocs=size, start_method="fork")
    assert sorted(path.name for path in tmp_path.glob("done-*")) == [f"done-{rank}" for rank in range(size)]
