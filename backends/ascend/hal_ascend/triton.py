"""The portable Triton kernels on Ascend: behind everything else, until one has met a chip."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from hal_triton import declared

from hal.constraints import attribute
from hal.kernel import Kernel
from hal.target import Target
from hal_ascend.offers import installed

__all__ = ["triton_kernels"]


PUBLISHED = ("mxfp8", "fp8_block128")
"""Weights as published, and their lossless relative, for the 950. AscendNPU-IR 1.2.0 fails on experts in mxfp4, and on
those in int8 for the other chips: products that are split in two halves."""


def triton_kernels(target: Target) -> tuple[Kernel, ...]:
    """One kernel per contract, named `ascend.contract.triton`; `HAL_OPS='*.triton|*'` puts them first."""
    a5 = target.name == "ascend:a5"
    made = declared.kernels(
        "ascend",
        caches=("rows_bf16", "rows_bf16_fp8"),
        index=("index_fp8_132", "rows_bf16") if a5 else ("rows_bf16",),
        weights=(*PUBLISHED, "mxfp4", "bf16") if a5 else ("w8a8_int8", "bf16"),
        experts=(*PUBLISHED, "bf16") if a5 else ("bf16",),
        suffix=".triton",
        also=(installed("triton", "triton-ascend in place of stock Triton", lacking="" if _here() else "otherwise"),),
    )
    return made if a5 else tuple(map(_without_hadamard, made))


def _without_hadamard(kernel: Kernel) -> Kernel:
    """Rows of the indexer overflow the smaller unified buffer of A2 and A3."""
    if kernel.contract not in ("attn.store", "attn.compress"):
        return kernel
    return replace(kernel, constraints=(*kernel.constraints, attribute("hadamard").one_of(False)))


def _here() -> bool:
    return find_spec("triton") is not None and find_spec("triton.backends.ascend") is not None
