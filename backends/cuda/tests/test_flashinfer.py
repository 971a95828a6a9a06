"""`attn.attend` over FlashInfer's DeepSeek-V4 decoding, on the chips that FlashMLA is not made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hal_cuda.adapters import flashinfer, probe
from library_lab import FORMS, installed, judged

from hal.conformance.samples.attention import attend_sample
from hal.conformance.samples.batches import DECODE, EMPTY, LONG, MIXED, PREFILL, Requests
from hal.conformance.samples.sample import Sample


def sample(kind: str, ratio: int, requests: Requests, **words: Any) -> Sample:
    """A call that declines `lse`."""
    one = attend_sample(kind, ratio, requests, "bfloat16", "v4_584", **words)
    layouts = {**one.layouts, "lse": "none"}
    return Sample(**{**vars(one), "layouts": layouts})


ANY = [
    sample("swa", 0, MIXED, heads=64),
    sample("swa", 0, DECODE, heads=12, sink=False),
    sample("csa", 4, MIXED, heads=32, top_k=70),
    sample("csa", 4, PREFILL, heads=8, holes="front"),
    sample("hca", 128, LONG, heads=64),
    sample("swa", 0, EMPTY, heads=64),
]
SELECTED = [sample("csa", 4, requests, heads=64, top_k=24, holes="selected") for requests in (PREFILL, DECODE, MIXED)]


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flashinfer, "WORKSPACE", 1024)
    with installed(FORMS / "flashinfer_07"):
        yield


@pytest.mark.parametrize("one", ANY, ids=[one.title for one in ANY])
def test_results(one: Sample) -> None:
    judged(flashinfer.attend, one)


@pytest.mark.parametrize("one", SELECTED, ids=[one.title for one in SELECTED])
def test_results_of_selected_rows(one: Sample) -> None:
    judged(flashinfer.attend_selected, one)


def swap(first: str, second: str) -> Callable[[dict[str, Any]], None]:
    def plant(words: dict[str, Any]) -> None:
        words[first], words[second] = words[second], words[first]

    return plant


def change(name: str, how: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def plant(words: dict[str, Any]) -> None:
        words[name] = how(words[name])

    return plant


PLANTED = {
    "caches swapped": swap("swa_kv_cache", "compressed_kv_cache"),
    "lists swapped": swap("sparse_indices", "extra_sparse_indices"),
    "lengths swapped": swap("swa_topk_lens", "extra_sparse_topk_lens"),
    "the other layout": change("kv_layout", lambda _: "HND"),
    "the other format": change("kv_cache_format", lambda _: "nvfp4"),
    "a query of float16": change("query", torch.Tensor.half),
    "24 heads": change("query", lambda q: q[:, :24]),
    "a list of int64": change("sparse_indices", torch.Tensor.long),
    "a list of no multiple": change("sparse_indices", lambda rows: rows[:, :-28]),
    "sinks of bfloat16": change("sinks", torch.Tensor.bfloat16),
    "no sinks": change("sinks", lambda _: None),
    "lengths that are too short": change("extra_sparse_topk_lens", lambda lengths: (lengths - 2).clamp(min=0)),
    "another scale": change("bmm1_scale", lambda scale: scale * 1.25),
    "rows without their scales": change("swa_kv_cache", lambda pages: pages[..., :576]),
    "no extra lengths": change("extra_sparse_topk_lens", lambda _: None),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_planted_errors_are_caught(plant: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real, called = probe.function("flashinfer", flashinfer.CALL), []

    def wrong(**words: Any) -> Any:
        plant(words)
        called.append(words)
        return real(**words)

    with monkeypatch.context() as patch:
        patch.setattr(flashinfer.probe, "function", lambda library, *names: wrong)
        with pytest.raises((AssertionError, ValueError, RuntimeError)):
            judged(flashinfer.attend, sample("hca", 128, LONG, heads=64))
    assert called
