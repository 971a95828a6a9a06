"""`moe.ffn` over Mega MoE: every process gets what one process alone would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import deep_gemm_ops
import pytest
import torch
from hal_cuda.adapters import deep_gemm, megamoe, probe
from library_lab import FORMS, installed
from rank_lab import RANKS, local, together

from hal.conformance.samples.experts import ffn_sample
from hal.conformance.samples.sample import Sample
from hal.errors import ContractError
from hal.formats import quantize
from hal.numerics.contracts import expect
from hal.reference import experts as reference

SAMPLES = [
    ffn_sample(33, "mxfp4", "e4m3_32", "spread"),
    ffn_sample(33, "mxfp4", "e4m3_32", "holes", residual=False),
    ffn_sample(2, "mxfp4", "e4m3_32", "crowded"),
]


@pytest.fixture(params=["26", "28"], ids=["2.6", "2.8"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DeepGEMM on Blackwell, and the reference in the place of Triton's local kernels."""
    monkeypatch.setitem(deep_gemm_ops.ARCH, 0, 10)
    monkeypatch.setattr(megamoe, "MOST", 16)
    triton, kernels = pytest.importorskip("hal_triton.matmul"), pytest.importorskip("hal_triton.experts")
    monkeypatch.setattr(triton, "quantize", codes_of)
    for name in ("dispatch", "experts", "combine"):
        monkeypatch.setattr(kernels, name, getattr(reference, name))
    with installed(FORMS / f"deep_gemm_{request.param}"):
        yield


def codes_of(x: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    done = quantize(x, activation)
    return done.codes, done.scales


def layer(sample: Sample, calls: int = 1) -> None:
    """Each process runs other tokens, `calls` times; each result is judged as if it had run them alone."""
    x, ids, weights, w13, w2, residual, _ = sample.arguments()
    words = dict(sample.attributes)

    def work(group: SimpleNamespace) -> tuple[tuple[Any, ...], torch.Tensor]:
        own = [part[group.rank :: RANKS] for part in (x, ids, weights)]
        rest = None if residual is None else residual[group.rank :: RANKS]
        mine = local(w13, group.rank), local(w2, group.rank)
        for _ in range(calls):
            y = megamoe.ffn(*own, *mine, rest, group, **words)
        return (*own, w13, w2, rest, None), y

    for arguments, y in together(work):
        verdict = expect("moe.ffn", arguments, words).judge(y, arguments)
        assert verdict.passed, str(verdict)


@pytest.mark.parametrize("sample", SAMPLES, ids=[one.title for one in SAMPLES])
def test_a_layer_over_processes(sample: Sample) -> None:
    layer(sample)


def test_a_buffer_serves_many_layers() -> None:
    layer(SAMPLES[0], calls=2)


def test_one_process_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    x, ids, weights, w13, w2, residual, _ = SAMPLES[0].arguments()
    words = dict(SAMPLES[0].attributes)
    with monkeypatch.context() as patch:
        patch.setattr(probe, "function", None)
        y = megamoe.ffn(x, ids, weights, w13, w2, residual, None, **words)
    assert torch.equal(y, reference.ffn(x, ids, weights, w13, w2, residual, None, **words))


def test_more_tokens_than_the_buffer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megamoe, "MOST", 4)
    with pytest.raises(ContractError, match="buffer holds 4"):
        layer(SAMPLES[0])


def position(number: int, how: Callable[[Any], Any]) -> Callable[[list[Any], dict[str, Any]], None]:
    def plant(arguments: list[Any], words: dict[str, Any]) -> None:
        arguments[number] = how(arguments[number])

    return plant


def swapped(arguments: list[Any], words: dict[str, Any]) -> None:
    arguments[1], arguments[2] = arguments[2], arguments[1]


def buffered(name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[list[Any], dict[str, Any]], None]:
    def plant(arguments: list[Any], words: dict[str, Any]) -> None:
        view = getattr(arguments[3], name)
        view.copy_(how(view.clone()))

    return plant


PLANTED = {
    "weights swapped": swapped,
    "weights as bytes": position(1, lambda pair: (pair[0].view(torch.uint8), pair[1])),
    "scales of the other rows": position(1, lambda pair: (pair[0], pair[1].flip(1))),
    "an output of float32": position(0, torch.Tensor.float),
    "another recipe": lambda arguments, words: words.update(recipe=(1, 1, 16)),
    "no clamp": lambda arguments, words: words.update(activation_clamp=1e9),
    "routing weights of other slots": buffered("topk_weights", lambda weights: weights.roll(1, 1)),
    "experts off by one": buffered("topk_idx", lambda ids: torch.where(ids > 0, ids - 1, ids)),
    "scales of other tokens": buffered("x_sf", lambda scales: scales.roll(1, 0)),
}


@pytest.mark.parametrize("title", PLANTED)
def test_planted_errors_are_caught(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe.function

    def function(library: str, *names: str) -> Any:
        real = found(library, *names)

        def wrong(*arguments: Any, **words: Any) -> Any:
            given = list(arguments)
            PLANTED[title](given, words)
            return real(*given, **words)

        return wrong if names[0] == "fp8_fp4_mega_moe" else real

    with monkeypatch.context() as patch:
        patch.setattr(megamoe.probe, "function", function)
        with pytest.raises((AssertionError, RuntimeError)):
            layer(SAMPLES[0])


@pytest.mark.parametrize("step", ["transform_weights_for_mega_moe", "transform_sf_into_required_layout"])
def test_a_transformation_left_out_is_caught(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe.function
    untouched: dict[str, Callable[..., Any]] = {
        "transform_weights_for_mega_moe": lambda first, second: (first, second),
        "transform_sf_into_required_layout": lambda sf, **words: sf,
    }
    with monkeypatch.context() as patch:
        chosen = lambda library, *names: untouched[step] if names[0] == step else found(library, *names)  # noqa: E731
        patch.setattr(deep_gemm.probe, "function", chosen)
        with pytest.raises((AssertionError, RuntimeError)):
            layer(SAMPLES[0])
