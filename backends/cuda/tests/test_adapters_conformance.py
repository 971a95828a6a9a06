"""The conformance suite over the adapters, with stand-ins for the libraries: samples, laws, edges, refusals.

Exchanges between processes have tests of their own: the suite has one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import deep_gemm_ops
import flash_mla_ops
import pytest
import torch
from hal_cuda.adapters import deep_gemm, flashinfer
from hal_cuda.adapters.declared import adapters
from library_lab import FORMS, installed

from hal.conformance.cases import cases_of
from hal.conformance.laws import capture
from hal.conformance.trial import Subject
from hal.formats import quantize
from hal.target import Target, described

LIBRARIES = [
    ("flash_mla_upstream", "sm90"),
    ("flash_mla_sgl", "sm100"),
    ("deep_gemm_26", "sm90"),
    ("deep_gemm_26", "sm100"),
    ("deep_gemm_28", "sm90"),
    ("flashinfer_07", "sm120"),
]
ALONE = ("attn.attend", "attn.select", "attn.index_scores", "moe.experts", "quant.matmul")
"""Contracts that one process is enough for."""


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlashMLA's operators, a small workspace, and the reference's quantiser, whose bits are the Triton kernel's."""

    def plain(x: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
        done = quantize(x, activation)
        return done.codes, done.scales

    monkeypatch.setattr(deep_gemm, "quantize", plain)
    bodies = ("flash_mla_ops", "deep_gemm_ops", "flashinfer_ops")
    monkeypatch.setattr(capture, "STAND_INS", (*capture.STAND_INS, *bodies))
    monkeypatch.setattr(flashinfer, "WORKSPACE", 1024)
    libraries = flash_mla_ops.register()
    yield
    for library in libraries:
        library._destroy()


def on_host(chip: str) -> Target:
    """A described chip whose tensors are the CPU's."""
    return next(replace(one, device_type="cpu") for one in described() if one.name == f"cuda:{chip}")


@pytest.mark.parametrize(("form", "chip"), LIBRARIES, ids=[" on ".join(pair) for pair in LIBRARIES])
def test_every_case(form: str, chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deep_gemm_ops.ARCH, 0, {"sm90": 9, "sm100": 10, "sm120": 12}[chip])
    target, library = on_host(chip), form.rpartition("_")[0]
    kernels = [kernel for kernel in adapters(target) if kernel.contract in ALONE and library in kernel.id]
    kernels = [kernel for kernel in kernels if not kernel.id.endswith("fp4") or "fp4_mma" in target.features]
    assert kernels
    with installed(FORMS / form):
        for kernel in kernels:
            cases = list(cases_of(kernel, target, quick=True))
            assert {case.kind for case in cases} >= {"parity", "refusal"}, kernel.id
            assert len(cases) > 15, kernel.id
            for case in cases:
                case.run(Subject(kernel, target, nullcontext))
            if kernel.capturable:  # the suite takes laws' samples from those that all kernels have
                sample = next(case.sample for case in cases if case.kind == "parity" and case.sample is not None)
                capture.CAPTURED.holds(Subject(kernel, target, nullcontext), sample)


def test_the_others_say_why_no_graph_records_them() -> None:
    others = {kernel.id: kernel.notes for chip in ("sm90", "sm100", "sm120") for kernel in adapters(on_host(chip))}
    for chip in ("sm90", "sm100", "sm120"):
        for kernel in adapters(on_host(chip)):
            if kernel.capturable:
                others.pop(kernel.id, None)
    assert set(others) == {
        "cuda.index_scores.deep_gemm",  # its width
        "cuda.dispatch.deep_ep",  # waits for counts
        "cuda.combine.deep_ep",  # with what dispatch left
        "cuda.ffn.megamoe",  # needs several processes
    }
