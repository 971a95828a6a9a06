"""What brings values of a device to the host is seen, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hal.conformance.laws.capture import host_reads

X = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
MASK = X > 0


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
    ],
)
def test_what_asks_is_seen(what: Callable[[], Any], name: str) -> None:
    with host_reads() as found:
        what()
    assert found
    assert set(found) & set(name.split("|"))


@pytest.mark.parametrize(
    "what",
    [
        lambda: X @ X,
        lambda: X[torch.tensor([0, 1])],
        lambda: X.clone().masked_fill_(MASK, 0),
        lambda: X.clone().__setitem__(MASK, 0.0),
        lambda: torch.where(MASK, X, 0),
        lambda: X.topk(1).values,
        lambda: torch.zeros(4).scatter_add_(0, torch.tensor([1]), torch.ones(1)),
    ],
)
def test_what_does_not_ask_is_not(what: Callable[[], Any]) -> None:
    with host_reads() as found:
        what()
    assert found == []
