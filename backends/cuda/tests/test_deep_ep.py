"""Experts shared by processes through DeepEP: every process gets what one process alone would."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import deep_ep_ops
import pytest
import torch
from hal_cuda.adapters import deep_ep, deep_gemm, probe
from library_lab import FORMS, installed, python_of
from rank_lab import RANKS, local, together

from hal.conformance.samples.experts import EXPERTS, ffn_sample
from hal.conformance.samples.sample import Sample
from hal.dispatched import Dispatched
from hal.errors import ContractError
from hal.formats import quantize
from hal.numerics.contracts import expect
from hal.reference import experts as reference


def layer(sample: Sample, plant: Callable[[Dispatched], Any] = lambda sent: sent, activation: str = "") -> None:
    """Each process runs other tokens of a layer; each result is judged as if it had run them alone."""
    x, ids, weights, w13, w2, residual, _ = sample.arguments()
    words = {**sample.attributes}
    sent_as = activation or words["activation"]

    def work(group: SimpleNamespace) -> tuple[tuple[Any, ...], torch.Tensor]:
        own = [part[group.rank :: RANKS] for part in (x, ids, weights)]
        rest = None if residual is None else residual[group.rank :: RANKS]
        sent = plant(deep_ep.dispatch(*own, group, experts=EXPERTS, activation=sent_as))
        rows = reference.experts(
            sent, local(w13, group.rank), local(w2, group.rank), clamp=words["clamp"], activation=words["activation"]
        )
        return (*own, w13, w2, rest, None), deep_ep.combine(rows, sent, rest)

    for arguments, y in together(work):
        verdict = expect("moe.ffn", arguments, words).judge(y, arguments)
        assert verdict.passed, str(verdict)


SAMPLES = [
    ffn_sample(33, "fp8_block128", "e4m3_128", "holes"),
    ffn_sample(33, "fp8_block128", "e4m3_128", "crowded", residual=False),
    ffn_sample(33, "mxfp4", "e4m3_128", "spread"),
    ffn_sample(2, "fp8_block128", "e4m3_128", "spread"),
]


@pytest.fixture(scope="module", params=["stand-in", "its own Python"], autouse=True)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if request.param == "stand-in":
        with installed(FORMS / "deep_ep_v2"):
            yield
        return
    folder = tmp_path_factory.mktemp("deep_ep")
    if python_of("sgl_deep_ep", folder) is None:
        pytest.skip("incomplete: no wheel of sgl-deep-ep; `make .wheels-cuda` downloads them")
    with installed(folder), pytest.MonkeyPatch.context() as patch:
        for name in ("EP_SUPPRESS_NCCL_CHECK", "CUDA_HOME", "NCCL_DIR"):
            patch.setenv(name, "1")
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setitem(sys.modules, "deep_ep._C", deep_ep_ops.compiled())
        elastic = importlib.import_module("deep_ep.buffers.elastic")
        patch.undo()
        patch.setattr(elastic, "torch", deep_ep_ops.OnHost())
        patch.setattr(elastic, "check_nvlink_connections", lambda group: None)
        patch.setattr(elastic, "check_fast_rdma_atomic_support", lambda: True)
        patch.setattr(elastic, "get_nccl_comm_handle", lambda group, **words: SimpleNamespace(get=lambda: group))
        patch.setattr(elastic.ElasticBuffer, "get_theoretical_num_sms", lambda self, *words: 24)
        yield


@pytest.fixture(autouse=True)
def local_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in the place of Triton's local kernels, which have their own conformance."""
    triton = pytest.importorskip("hal_triton.matmul")
    kernels = pytest.importorskip("hal_triton.experts")
    monkeypatch.setattr(triton, "quantize", lambda x, activation: codes_of(x, activation))
    monkeypatch.setattr(kernels, "dispatch", reference.dispatch)
    monkeypatch.setattr(kernels, "combine", reference.combine)


def codes_of(x: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    done = quantize(x, activation)
    return done.codes, done.scales


@pytest.mark.parametrize("sample", SAMPLES, ids=[one.title for one in SAMPLES])
def test_a_layer_over_processes(sample: Sample) -> None:
    layer(sample)


def test_rows_are_laid_out_as_deep_gemm_wants_them() -> None:
    x, ids, weights, *_ = SAMPLES[0].arguments()

    def work(group: SimpleNamespace) -> Dispatched:
        own = [part[group.rank :: RANKS] for part in (x, ids, weights)]
        return deep_ep.dispatch(*own, group, experts=EXPERTS, activation="e4m3_128")

    with_gemm = together(work)
    for rank, sent in enumerate(with_gemm):
        assert sent.starts is not None
        assert bool((sent.starts % deep_ep.ALIGNMENT == 0).all())
        wanted = torch.bincount(ids[ids >= 0].long(), minlength=EXPERTS).view(RANKS, -1)[rank]
        assert torch.equal(sent.counts, wanted)
        for start, count in zip(sent.starts.tolist(), sent.counts.tolist(), strict=True):
            assert bool(sent.weights[start : start + count].isfinite().all())


def test_one_process_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    x, ids, weights, _, _, residual, _ = SAMPLES[0].arguments()
    with monkeypatch.context() as patch:
        patch.setattr(probe, "function", None)
        sent = deep_ep.dispatch(x, ids, weights, None, experts=EXPERTS, activation="none")
        assert torch.equal(deep_ep.combine(sent.rows, sent, residual), reference.combine(sent.rows, sent, residual))


def test_more_tokens_than_the_buffer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_ep, "MOST", 4)
    with pytest.raises(ContractError, match="DeepEP's buffer holds 4"):
        layer(SAMPLES[0])


def changed(name: str, how: Callable[[Any], Any]) -> Callable[[list[Any], dict[str, Any]], None]:
    def plant(arguments: list[Any], words: dict[str, Any]) -> None:
        if name in words:
            words[name] = how(words[name])
        else:
            arguments[0] = how(arguments[0])

    return plant


def swapped(arguments: list[Any], words: dict[str, Any]) -> None:
    words["topk_idx"], words["topk_weights"] = words["topk_weights"], words["topk_idx"]


PLANTED = {
    ("dispatch", "ids and weights swapped"): swapped,
    ("dispatch", "ids of int32"): changed("topk_idx", torch.Tensor.int),
    ("dispatch", "weights of bfloat16"): changed("topk_weights", torch.Tensor.bfloat16),
    ("dispatch", "codes as bytes"): changed("x", lambda x: (x[0].view(torch.uint8), x[1])),
    ("dispatch", "scales of ue8m0"): changed("x", lambda x: (x[0], x[1].to(torch.float8_e8m0fnu))),
    ("dispatch", "scales per row"): changed("x", lambda x: (x[0], x[1][:, :1])),
    ("dispatch", "scales of other rows"): changed("x", lambda x: (x[0], x[1].flip(0))),
    ("dispatch", "bfloat16 rows in an FP8 buffer"): changed("x", lambda x: x[0].bfloat16()),
    ("dispatch", "too few experts"): changed("num_experts", lambda experts: experts // 2),
    ("combine", "rows of float32"): changed("x", torch.Tensor.float),
    ("combine", "rows of other experts"): changed("x", lambda rows: rows.roll(1, 0)),
    ("combine", "no residual"): changed("bias", lambda bias: None),
    ("combine", "a residual of other tokens"): changed("bias", lambda bias: bias.flip(0)),
}


@pytest.mark.parametrize(("method", "title"), PLANTED, ids=[": ".join(key) for key in PLANTED])
def test_planted_errors_are_caught(method: str, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = probe.function("deep_ep", "ElasticBuffer")
    real = getattr(buffer, method)

    def wrong(self: Any, *arguments: Any, **words: Any) -> Any:
        given = list(arguments)
        PLANTED[method, title](given, words)
        return real(self, *given, **words)

    monkeypatch.setattr(buffer, method, wrong)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        layer(SAMPLES[0])


def test_aligned_rows_go_into_products_as_they_are() -> None:
    x, ids, weights, *_ = SAMPLES[0].arguments()

    def work(group: SimpleNamespace) -> Dispatched:
        own = [part[group.rank :: RANKS] for part in (x, ids, weights)]
        return deep_ep.dispatch(*own, group, experts=EXPERTS, activation="e4m3_128")

    sent = together(work)[0]
    with installed(FORMS / "deep_gemm_28"):
        segments = deep_gemm.aligned(sent)
    assert torch.equal(segments.source, torch.arange(len(sent.rows)))
    used = torch.cat([torch.arange(s, s + c) for s, c in zip(sent.offsets(), sent.counts, strict=True)])
    assert bool((segments.expert[used] >= 0).all())
    assert int((segments.expert >= 0).sum()) == len(used)
