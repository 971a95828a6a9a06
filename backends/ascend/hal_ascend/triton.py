"""The portable Triton kernels on Ascend: behind everything else, until one has met a chip."""

from __future__ import annotations

from importlib.util import find_spec

from hal_triton import declared

from hal.constraints import check
from hal.kernel import Kernel
from hal.target import Target

__all__ = ["triton_kernels"]


WEIGHTS = {"ascend:a5": ("mxfp8", "fp8_block128", "mxfp4", "bf16")}
INDEX = {"ascend:a5": ("index_fp8_132", "rows_bf16")}


def triton_kernels(target: Target) -> tuple[Kernel, ...]:
    """One kernel per contract, named `ascend.contract.triton`; `HAL_OPS='*.triton|*'` puts them first."""
    here = _here()
    return declared.kernels(
        "ascend",
        caches=("rows_bf16", "rows_bf16_fp8"),
        index=INDEX.get(target.name, ("index_bf16_mxfp4", "rows_bf16")),
        weights=WEIGHTS.get(target.name, ("w8a8_int8", "bf16")),
        suffix=".triton",
        also=(check(lambda facts: here, says="triton-ascend in place of stock Triton"),),
    )


def _here() -> bool:
    return find_spec("triton") is not None and find_spec("triton.backends.ascend") is not None
