"""What brings values of a device to the host is seen, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hal.conformance.laws.capture import host_reads

X = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
MASK = X > 0
INDEX = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (lambda: int(X[0, 0]), "_local_scalar_dense"),
        (lambda: bool(MASK.any()), "is_nonzero|_local_scalar_dense"),
        (lambda: X[MASK], "index"),
        (lambda: X.clone().__setitem__(MASK, X[MASK]), "index"),
        (lambda: X.nonzero(), "nonzero"),
        (lambda: torch.arange(2).repeat_interleave(torch.tensor([1, 2])), "repeat_interleave"),
        (lambda: X.tolist(), "tolist"),
        (lambda: X.numpy(), "numpy"),
        (lambda: torch.unique(X), "_unique2"),
        (lambda: torch.tensor([1.0, 2.0]), "lift_fresh"),
        (lambda: X.to("meta"), "_to_copy"),
    ],
)
def test_what_asks_is_seen(what: Callable[[], Any], name: str) -> None:
    with host_reads() as watch:
        what()
    assert set(watch.found) & set(name.split("|"))


@pytest.mark.parametrize(
    "what",
    [
        lambda: X @ X,
        lambda: X[INDEX],
        lambda: X.clone().masked_fill_(MASK, 0),
        lambda: X.clone().__setitem__(MASK, 0.0),
        lambda: torch.where(MASK, X, 0),
        lambda: X.topk(1).values,
        lambda: torch.zeros(4).scatter_add_(0, INDEX, torch.ones(2)),
    ],
)
def test_what_does_not_ask_is_not(what: Callable[[], Any]) -> None:
    with host_reads() as watch:
        what()
    assert watch.found == []


def test_memory_that_stays_is_seen_and_no_other() -> None:
    held: list[torch.Tensor] = []
    with host_reads() as watch:
        result = (X @ X).relu().view(-1)
        held.append(X + 1)
        X.clone().view(4).mul_(2)
    assert set(watch.kept) == {"relu", "add"}
    del result
    assert watch.kept == ["add"]
