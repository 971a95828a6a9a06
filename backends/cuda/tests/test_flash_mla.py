"""`attn.attend` over FlashMLA, in every form that is published: what it is given fits, and what comes back is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flash_mla_ops
import pytest
import torch
from hal_cuda.adapters import flash_mla, probe
from library_lab import FORMS, installed, judged, python_of

from hal.conformance.samples.attention import attend_sample
from hal.conformance.samples.batches import DECODE, EMPTY, LONG, MIXED, PREFILL, Requests
from hal.conformance.samples.sample import Sample


def sample(kind: str, ratio: int, requests: Requests, **words: Any) -> Sample:
    return attend_sample(kind, ratio, requests, "bfloat16", "v4_584", **words)


SAMPLES = {
    one.title: one
    for one in (
        sample("swa", 0, MIXED, heads=64),
        sample("swa", 0, DECODE, heads=16, sink=False),
        sample("csa", 4, MIXED, heads=64, top_k=70),
        sample("csa", 4, PREFILL, heads=8, holes="front"),
        sample("csa", 4, DECODE, heads=128, top_k=24, holes="all"),
        sample("csa", 4, MIXED, heads=64, top_k=24, window=0, holes="all"),
        sample("hca", 128, MIXED, heads=72),
        sample("hca", 128, LONG, heads=64),
        sample("swa", 0, EMPTY, heads=64),
    )
}
SELECTED = [sample("csa", 4, requests, heads=64, top_k=24, holes="selected") for requests in (PREFILL, DECODE, MIXED)]


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    libraries = flash_mla_ops.register()
    yield
    for library in libraries:
        library._destroy()


@pytest.fixture(
    params=["upstream", "vllm", "sgl", "wheel"],
    ids=["FlashMLA", "FlashMLA in vLLM", "sgl-flash-mla, stand-in", "sgl-flash-mla, its own Python"],
)
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder: Path | None = FORMS / f"flash_mla_{request.param}"
    if request.param == "wheel":
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
        folder = python_of("sgl_flash_mla", tmp_path, ("flash_mla/cuda.abi3.so", "flash_mla/_C_legacy.abi3.so"))
        if folder is None:
            pytest.skip("incomplete: no wheel of sgl-flash-mla; `make .wheels-cuda` downloads them")
    with installed(folder):
        yield


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("one", SAMPLES.values(), ids=SAMPLES)
def test_results(one: Sample) -> None:
    judged(flash_mla.attend, one)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("one", SELECTED, ids=[one.title for one in SELECTED])
def test_results_of_selected_rows(one: Sample) -> None:
    judged(flash_mla.attend_selected, one)


@pytest.fixture
def upstream() -> Iterator[None]:
    with installed(FORMS / "flash_mla_upstream"):
        yield


@pytest.mark.usefixtures("upstream")
def test_layers_of_a_step_share_lists_and_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    real = probe.function("flash_mla", flash_mla.CALL)
    monkeypatch.setattr(flash_mla.probe, "function", spied(real, calls))
    one = SAMPLES[sample("hca", 128, MIXED, heads=72).title]
    arguments = one.arguments()
    for _ in range(2):
        flash_mla.attend(*arguments, **one.attributes)
    first, second = calls
    for name in ("tile_scheduler_metadata", "topk_length", "extra_topk_length"):
        assert first[name] is second[name] or first[name].data_ptr() == second[name].data_ptr()
    assert first["indices"].data_ptr() == second["indices"].data_ptr()
    assert first["k_cache"].data_ptr() == arguments[1].pages.data_ptr(), "pages are read in place"


@pytest.mark.usefixtures("upstream")
def test_many_tokens_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_mla, "PIECE", 4)
    judged(flash_mla.attend, SAMPLES[sample("csa", 4, MIXED, heads=64, top_k=70).title])
    judged(flash_mla.attend, SAMPLES[sample("hca", 128, MIXED, heads=72).title])


def spied(real: Callable[..., Any], calls: list[dict[str, Any]]) -> Callable[..., Any]:
    found = probe.function

    def call(**words: Any) -> Any:
        calls.append(words)
        return real(**words)

    return lambda library, *names: call if names == (flash_mla.CALL,) else found(library, *names)


def swap(first: str, second: str) -> Callable[[dict[str, Any]], None]:
    def plant(words: dict[str, Any]) -> None:
        words[first], words[second] = words[second], words[first]

    return plant


def change(name: str, how: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def plant(words: dict[str, Any]) -> None:
        words[name] = how(words[name])

    return plant


def shifted(pages: torch.Tensor) -> torch.Tensor:
    """The same pages 8 bytes further on."""
    room = torch.zeros(len(pages), pages.stride(0) + 576, dtype=torch.uint8)
    return room.as_strided(pages.shape, (room.stride(0), *pages.stride()[1:]), 8)


def scheduled(schedule: Any) -> Any:
    """As an earlier step with other lengths left it."""
    schedule.tile_scheduler_metadata = torch.zeros(1, 8, dtype=torch.int32)
    schedule.num_splits = torch.arange(5, dtype=torch.int32)
    return schedule


PLANTED = {
    "caches swapped": swap("k_cache", "extra_k_cache"),
    "lists swapped": swap("indices", "extra_indices_in_kvcache"),
    "lengths swapped": swap("topk_length", "extra_topk_length"),
    "lists of int64": change("indices", torch.Tensor.long),
    "a list of no multiple": change("extra_indices_in_kvcache", lambda rows: rows[..., :-28]),
    "q in float16": change("q", torch.Tensor.half),
    "40 heads": change("q", lambda q: q[:, :, :40]),
    "sinks of bfloat16": change("attn_sink", torch.Tensor.bfloat16),
    "no sink": change("attn_sink", lambda sink: None),
    "lengths off by one": change("topk_length", lambda lengths: lengths - 1),
    "entries where rows are wanted": change("extra_indices_in_kvcache", lambda rows: rows.clamp(max=5)),
    "base not aligned to 16 bytes": change("k_cache", shifted),
    "rows without their scales": change("k_cache", lambda pages: pages[..., :576]),
    "pages as bfloat16": change("k_cache", lambda pages: pages.view(torch.bfloat16)),
    "another scale": change("softmax_scale", lambda scale: scale * 1.25),
    "not an fp8 cache": change("is_fp8_kvcache", lambda _: False),
    "lists read too short": change("extra_topk_length", lambda lengths: (lengths - 2).clamp(min=0)),
    "the schedule of another batch": change("tile_scheduler_metadata", scheduled),
}


@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_planted_errors_are_caught(plant: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.function("flash_mla", flash_mla.CALL)
    wrong: list[dict[str, Any]] = []

    def call(**words: Any) -> Any:
        plant(words)
        wrong.append(words)
        return real(**words)

    found = probe.function
    chosen: Callable[..., Any] = lambda library, *names: call if names == (flash_mla.CALL,) else found(library, *names)  # noqa: E731
    monkeypatch.setattr(flash_mla.probe, "function", chosen)
    with pytest.raises((AssertionError, RuntimeError)):
        judged(flash_mla.attend, sample("hca", 128, LONG, heads=64))
    assert wrong, "the library was called"
