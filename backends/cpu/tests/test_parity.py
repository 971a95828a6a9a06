"""Every kernel against the contract's reference on every conformance sample: ragged batches, layouts, every edge."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hal_cpu.kernels import KERNELS
from torch import Tensor

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.conformance.samples import Sample, samples
from hal.dispatched import Dispatched
from hal.formats import PackedWeight
from hal.ops import CONTRACTS

KERNEL = {kernel.contract: kernel for kernel in KERNELS}
CASES = [pytest.param(sample, id=f"{name}/{sample.title}") for name in KERNEL for sample in samples(name)]
TOLERANCE = {"float64": 1e-12, "float32": 5e-6, "bfloat16": 1.6e-2, "float16": 2e-3}


def load(code: str) -> Any:
    module, _, name = code.partition(":")
    return getattr(importlib.import_module(module), name)


def test_every_contract_has_a_kernel_or_a_reference_that_serves() -> None:
    assert set(KERNEL) == {name for name, contract in CONTRACTS.items() if not contract.portable}


@pytest.mark.parametrize("sample", CASES)
def test_agrees_with_the_reference(sample: Sample) -> None:
    with torch.no_grad():
        ours, theirs = sample.arguments(), sample.arguments()
        got = load(KERNEL[sample.contract].code)(*ours, **sample.attributes)
        want = load(CONTRACTS[sample.contract].reference)(*theirs, **sample.attributes)
    dtype = next(iter(sample.dtypes.values()), "float32")
    if sample.contract == "attn.select":
        same_choice(got, want, theirs, sample)
    elif sample.contract == "moe.dispatch":
        same_dispatch(got, want)
    else:
        close(got, want, dtype)
    for mine, other in zip(ours, theirs, strict=True):
        same_argument(mine, other, dtype)


def close(got: Any, want: Any, dtype: str) -> None:
    """Equal shapes and dtypes; values within a few roundings of the largest one."""
    if isinstance(want, tuple):
        assert len(got) == len(want)
        for mine, other in zip(got, want, strict=True):
            close(mine, other, dtype)
    elif isinstance(want, Tensor):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        if want.dtype.itemsize == 1 or not want.is_floating_point():
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
            return
        name = str(want.dtype).removeprefix("torch.")
        finite = want[want.isfinite()]
        size = float(finite.abs().max()) if finite.numel() else 1.0
        torch.testing.assert_close(
            got, want, rtol=0, atol=max(TOLERANCE[name], TOLERANCE[dtype]) * max(size, 1e-3), equal_nan=True
        )
    else:
        assert got is None
        assert want is None


def same_choice(got: Tensor, want: Tensor, arguments: tuple[Any, ...], sample: Sample) -> None:
    """Chosen entries first, then -1; all different; and as good as the reference's, score by score."""
    assert got.dtype == want.dtype
    assert torch.equal(got >= 0, want >= 0)
    q, weights, rope, batch, cache = arguments
    kept: dict[str, Tensor] = {}

    def scores(*args: Any) -> Tensor:
        from hal.reference.selection import index_scores

        q, weights, batch, cache = args
        names = ("ratio", "scale")
        kept["scores"] = index_scores(
            q.double(), weights.double(), batch, cache, **{n: sample.attributes[n] for n in names}
        )
        return kept["scores"]

    from types import SimpleNamespace

    reference = load(CONTRACTS[sample.contract].reference)
    reference(q, weights, rope, batch, cache, **sample.attributes, parts=SimpleNamespace(index_scores=scores))
    found = kept["scores"]
    if not found.numel():
        return
    for rows in (got, want):
        taken = rows[rows >= 0].long() + rows.shape[0] * 0
        assert taken.numel() == int((want >= 0).sum())
    mine = torch.where(got >= 0, found.gather(1, got.long().clamp_min(0)), torch.inf).sort(1).values
    best = torch.where(want >= 0, found.gather(1, want.long().clamp_min(0)), torch.inf).sort(1).values
    torch.testing.assert_close(mine, best, rtol=1e-5, atol=1e-6)
    for row in got.tolist():
        chosen = [entry for entry in row if entry >= 0]
        assert len(set(chosen)) == len(chosen)


def same_dispatch(got: Dispatched, want: Dispatched) -> None:
    """The same rows per expert; the way back leads from each slot to a row with the same content."""
    assert torch.equal(got.counts, want.counts)
    assert torch.equal(got.index >= 0, want.index >= 0)
    used = got.index >= 0
    for field in ("rows", "scales", "weights"):
        mine, other = getattr(got, field), getattr(want, field)
        if other is None:
            assert mine is None
            continue
        mine, other = mine[got.index[used]], other[want.index[used]]
        assert torch.equal(mine.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def same_argument(mine: Any, other: Any, dtype: str) -> None:
    """Caches and states end up the same; what is not mutated keeps every bit."""
    if isinstance(other, KVCache):
        if other.layout.name.startswith("rows_f"):
            close(mine.canonical(), other.canonical(), dtype)
        else:
            changed = (mine.canonical() - other.canonical()).abs().nan_to_num() > 0
            assert changed.float().mean() < 1e-3
    elif isinstance(other, StateCache):
        close(mine.tensor, other.tensor, dtype)
    elif isinstance(other, Tensor):
        assert (
            torch.equal(mine.nan_to_num(), other.nan_to_num())
            if other.is_floating_point()
            else torch.equal(mine, other)
        )
    else:
        assert other is None or isinstance(other, Batch | PackedWeight | Dispatched) or mine == other
