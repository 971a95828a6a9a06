"""`attn.attend` over FlashInfer's DeepSeek-V4 decoding, on the chips that FlashMLA is not made for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import flashinfer_ops
import pytest
import torch
from hal_cuda.adapters import flashinfer, probe
from library_lab import FORMS, Absentees, installed, judged, python_of

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


@pytest.fixture(scope="module", params=["stand-in", "its own Python"], autouse=True)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if request.param == "stand-in":
        with installed(FORMS / "flashinfer_07"):
            yield
        return
    folder = tmp_path_factory.mktemp("flashinfer")
    if python_of("flashinfer_python", folder) is None or python_of("apache_tvm_ffi", folder, whole=True) is None:
        pytest.skip("incomplete: no wheel of flashinfer-python and apache-tvm-ffi; `make .wheels-cuda` downloads them")
    with installed(folder), pytest.MonkeyPatch.context() as patch:
        importlib.import_module("tvm_ffi")
        patch.setattr(sys, "meta_path", [*sys.meta_path, Absentees("cuda", "pynvml", "requests", "tabulate", "einops")])
        core = importlib.import_module("flashinfer.mla._core")
        patch.setattr(core, "get_compute_capability", lambda device: (12, 0))
        patch.setattr(core, "is_sm12x_supported", lambda device: True)
        prepared = SimpleNamespace(functional_run=flashinfer_ops.functional_run)
        patch.setitem(sys.modules, "flashinfer.mla._sparse_mla_sm120._prepared", prepared)
        patch.setattr(core, "device_support_pdl", lambda device: False)
        yield


@pytest.fixture(autouse=True)
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "WORKSPACE", 1024)


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
