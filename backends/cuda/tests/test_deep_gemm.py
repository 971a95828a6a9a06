"""DeepGEMM's products and logits in the versions that are published, on both chips that it is made for."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import deep_gemm_ops
import megamoe_ops
import pytest
import torch
from hal_cuda.adapters import deep_gemm, probe
from hal_cuda.adapters.declared import HALVES, adapters
from library_lab import FORMS, installed, judged, python_of

from hal.conformance.cases import eligible
from hal.conformance.samples.attention import index_scores_sample, select_sample
from hal.conformance.samples.batches import DECODE, EMPTY, LONG, MIXED, PREFILL
from hal.conformance.samples.experts import experts_sample
from hal.conformance.samples.matmul import matmul_sample
from hal.conformance.samples.sample import Sample
from hal.errors import ContractError
from hal.formats import prepare, quantize
from hal.numerics.precision import Precision
from hal.target import described

ROUNDED = Precision(**dict(HALVES))

MATMUL = [matmul_sample(tokens, 256, 384, "fp8_block128", "e4m3_128", "bfloat16") for tokens in (0, 1, 33)]
SCORES = {
    rows: [index_scores_sample(one, "bfloat16", rows, heads=64) for one in (PREFILL, DECODE, MIXED, EMPTY)]
    for rows in ("index_fp8_132", "index_mxfp4_68")
}
SELECT = [
    select_sample(MIXED, "bfloat16", "index_mxfp4_68", heads=64),
    *(select_sample(one, "bfloat16", "index_fp8_132", heads=64) for one in (PREFILL, DECODE, MIXED, EMPTY)),
    select_sample(LONG, "bfloat16", "index_fp8_132", heads=64, top_k=512),
]
FP8 = [experts_sample(tokens, "fp8_block128", "e4m3_128", "holes") for tokens in (0, 1, 33)]
FP8 += [experts_sample(33, "fp8_block128", "e4m3_128", "crowded", align=16)]
FP4 = [experts_sample(33, "mxfp4", activation, "spread") for activation in ("e4m3_32", "e4m3_128")]


@pytest.fixture(autouse=True)
def reference_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton kernel's bits without Triton; that they are the same is `quant.quantize`'s own conformance."""

    def plain(x: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
        done = quantize(x, activation)
        return done.codes, done.scales

    monkeypatch.setattr(deep_gemm, "quantize", plain)


@pytest.fixture(params=[9, 10], ids=["sm90", "sm100"])
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(deep_gemm_ops.ARCH, 0, request.param)
    return int(request.param)


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    library = deep_gemm_ops.register()
    yield
    library._destroy()


@pytest.fixture(params=["26", "28", "wheel"], ids=["2.6", "2.8", "sgl-deep-gemm, its own Python"])
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder: Path | None = FORMS / f"deep_gemm_{request.param}"
    if request.param == "wheel":
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
        monkeypatch.setattr(atexit, "register", lambda function: function)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        folder = python_of("sgl_deep_gemm", tmp_path, ("deep_gemm/_C.so",))
        if folder is None:
            pytest.skip("incomplete: no wheel of sgl-deep-gemm; `make .wheels-cuda` downloads them")
    with installed(folder):
        yield request.param


def declared(name: str, sample: Sample, arch: int) -> bool:
    """Whether the adapter's own declaration takes the sample, on the chip and with the library of this test."""
    target = next(replace(one, present=True) for one in described() if one.name == f"cuda:sm{10 * arch}")
    return any(one.id == f"cuda.{name}" and eligible(one, sample.call, target) for one in adapters(target))


@pytest.mark.usefixtures("version", "arch")
@pytest.mark.parametrize("sample", MATMUL, ids=[one.title for one in MATMUL])
def test_products(sample: Sample) -> None:
    judged(deep_gemm.matmul, sample)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("rows", SCORES)
def test_logits(number: int, rows: str, arch: int, version: str) -> None:
    sample = SCORES[rows][number]
    taken = rows == "index_fp8_132" if arch == 9 else version == "26"
    assert declared("index_scores.deep_gemm", sample, arch) == taken
    if taken:
        judged(deep_gemm.index_scores, sample)


@pytest.mark.parametrize("scores", [1 << 26, 100], ids=["at once", "in pieces"])
@pytest.mark.parametrize("sample", SELECT, ids=[one.title for one in SELECT])
def test_selection(sample: Sample, scores: int, arch: int, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = sample is not SELECT[0] if arch == 9 else version == "26"
    assert declared("select.deep_gemm", sample, arch) == taken
    if taken:
        monkeypatch.setattr(deep_gemm, "SCORES", scores)
        judged(deep_gemm.select, sample)


def test_equal_scores_go_to_the_lowest_entry() -> None:
    scores = torch.tensor([[0.0, -0.0, 1.0, -torch.inf, 0.0, -2.0, 1.0]])
    assert deep_gemm._best(scores, 5).tolist() == [[2, 6, 0, 1, 4]]


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("sample", [*FP8, *FP4], ids=[one.title for one in (*FP8, *FP4)])
def test_experts(sample: Sample, arch: int) -> None:
    taken = arch == 10 or sample in FP8
    assert declared("experts.deep_gemm.fp4" if sample in FP4 else "experts.deep_gemm", sample, arch) == taken
    if taken:
        judged(deep_gemm.experts, sample, ROUNDED)


def test_weights_of_mega_moe_are_transformed_as_the_library_does_it(version: str) -> None:
    torch.manual_seed(0)
    codes = [torch.randint(-128, 127, (2, rows, 64), dtype=torch.int8) for rows in (256, 128)]
    packed = [torch.randint(0, 1 << 30, (2, 1, rows), dtype=torch.int32).mT for rows in (256, 128)]
    pairs = list(zip(codes, packed, strict=True))
    theirs = probe.function("deep_gemm", "transform_weights_for_mega_moe")(*pairs)
    for pair, wanted in zip(theirs, megamoe_ops.transform(*pairs), strict=True):
        assert all(torch.equal(*both) for both in zip(pair, wanted, strict=True))
        assert pair[1].stride() == wanted[1].stride()


def test_signatures_of_compiled_functions_are_found_in_their_docstrings() -> None:
    with installed(FORMS / "deep_gemm_26"):
        assert {"clean_logits", "logits_dtype"} <= probe.parameters("deep_gemm", deep_gemm.LOGITS)
    with installed(FORMS / "deep_gemm_28"):
        known = probe.parameters("deep_gemm", deep_gemm.LOGITS)
        assert "indices" in known
        assert not known & {"clean_logits", "logits_dtype"}


@pytest.mark.usefixtures("version")
def test_scales_that_are_no_powers_of_two_are_refused_where_they_would_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = prepare(torch.randn(128, 256), "fp8_block128", scale_dtype=torch.float32)
    x = torch.randn(2, 256).bfloat16()
    deep_gemm.matmul(x, weight, activation="e4m3_128")
    monkeypatch.setitem(deep_gemm_ops.ARCH, 0, 10)
    weight = prepare(torch.randn(128, 256), "fp8_block128", scale_dtype=torch.float32)
    with pytest.raises(ContractError, match="no powers of two"):
        deep_gemm.matmul(x, weight, activation="e4m3_128")


@pytest.mark.usefixtures("version")
def test_pages_of_another_size_are_refused() -> None:
    q, weights, batch, cache = SCORES["index_fp8_132"][0].arguments()
    with pytest.raises(ContractError, match="pages of 32 rows"):
        deep_gemm.index_scores(
            q, weights, batch, replace(cache, layout=replace(cache.layout, block_size=32)), ratio=4, scale=1.0
        )


def changed(position: int, how: Callable[[Any], Any]) -> Callable[[list[Any], dict[str, Any]], None]:
    def plant(arguments: list[Any], words: dict[str, Any]) -> None:
        arguments[position] = how(arguments[position])

    return plant


def swapped(first: int, second: int) -> Callable[[list[Any], dict[str, Any]], None]:
    def plant(arguments: list[Any], words: dict[str, Any]) -> None:
        arguments[first], arguments[second] = arguments[second], arguments[first]

    return plant


def worded(**new: Any) -> Callable[[list[Any], dict[str, Any]], None]:
    return lambda arguments, words: words.update(new)


PLANTED = {
    "matmul": (
        deep_gemm.GEMM,
        {
            "operands swapped": swapped(0, 1),
            "codes of e5m2": changed(0, lambda a: (a[0].view(torch.float8_e5m2), a[1])),
            "scales of ue8m0": changed(0, lambda a: (a[0], a[1].to(torch.float8_e8m0fnu))),
            "scales transposed": changed(0, lambda a: (a[0], a[1].T)),
            "scales of the first rows for all": changed(0, lambda a: (a[0], a[1][:1].expand_as(a[1]))),
            "an output of float16": changed(2, torch.Tensor.half),
            "a weight in column order": changed(1, lambda b: (b[0].T, b[1].T)),
            "another recipe": worded(recipe_a=(1, 64)),
            "two recipes": worded(recipe=(1, 128, 128)),
        },
    ),
    "index_scores": (
        deep_gemm.LOGITS,
        {
            "lengths of int64": changed(3, torch.Tensor.long),
            "lengths of one dimension": changed(3, lambda lengths: lengths[:, 0]),
            "lengths one short": changed(3, lambda lengths: (lengths - 1).clamp(min=1)),
            "lengths and tables swapped": swapped(3, 4),
            "tables of slots, not of tokens": changed(4, lambda table: table[:3]),
            "another table": changed(4, lambda table: table.flip(0)),
            "weights of bfloat16": changed(2, torch.Tensor.bfloat16),
            "weights without scales": changed(2, torch.ones_like),
            "queries of bfloat16": changed(0, lambda q: (q[0].bfloat16(), q[1])),
            "queries without their axis": changed(0, lambda q: (q[0][:, 0], q[1])),
            "pages without scales": changed(1, lambda pages: pages[..., :128]),
            "pages of 32 rows": changed(1, lambda pages: pages[:, :32]),
            "the schedule of another batch": changed(5, torch.zeros_like),
        },
    ),
    "experts": (
        deep_gemm.GROUPED,
        {
            "a layout of int64": changed(3, torch.Tensor.long),
            "segments that are not aligned": changed(3, lambda layout: layout.roll(1)),
            "experts off by one": changed(3, lambda layout: torch.where(layout > 0, layout - 1, layout)),
            "weights of one expert": changed(1, lambda b: (b[0][:1], b[1][:1])),
            "an output of float32": changed(2, torch.Tensor.float),
            "codes as bytes": changed(0, lambda a: (a[0].view(torch.uint8), a[1])),
            "another recipe": worded(recipe_b=(1, 128)),
        },
    ),
}
CASES = [(kernel, title) for kernel, (_, plants) in PLANTED.items() for title in plants]


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(("kernel", "title"), CASES, ids=[f"{kernel}: {title}" for kernel, title in CASES])
def test_planted_errors_are_caught(kernel: str, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plants = PLANTED[kernel]
    sample = {"matmul": MATMUL[2], "index_scores": SCORES["index_fp8_132"][2], "experts": FP8[2]}[kernel]
    adapter, precision = getattr(deep_gemm, kernel), ROUNDED if kernel == "experts" else None
    judged(adapter, sample, precision)
    found, called = probe.function, []

    def function(library: str, *names: str) -> Any:
        real = found(library, *names)

        def wrong(*arguments: Any, **words: Any) -> Any:
            changed_arguments = list(arguments)
            plants[title](changed_arguments, words)
            called.append(title)
            return real(*changed_arguments, **words)

        return wrong if names[0] == name else real

    with monkeypatch.context() as patch:
        patch.setattr(deep_gemm.probe, "function", function)
        with pytest.raises((AssertionError, RuntimeError, TypeError, ValueError, IndexError)):
            judged(adapter, sample, precision)
    assert called
