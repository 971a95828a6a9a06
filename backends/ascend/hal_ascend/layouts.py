"""What each chip computes with: cache layouts, weight schemes, activation quantisers. Names only, best first.

A2 and A3 have no FP8: bfloat16 caches, int8 index rows and int8 weights, which are a lossy preparation of the published
checkpoint. The 950 (A5) multiplies e4m3 and e2m1 with ue8m0 scales, so that checkpoint needs no loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from hal.ops.matmul import ACTIVATIONS, SCHEMES

__all__ = ["ACTIVATIONS", "CHIPS", "DTYPES", "Chip", "chip_of"]

DTYPES = ("bfloat16", "float16", "float32")
"""Of activations. torch_npu computes float64 in float32."""

PLAIN = ("rows_bf16", "rows_f32")
"""Caches that every kernel in plain torch reads."""

WEIGHTS = tuple(scheme for scheme in SCHEMES if scheme != "float64")


@dataclass(frozen=True)
class Chip:
    """One generation: what its caches hold and which weights its matrix unit multiplies as stored, best first."""

    soc: tuple[str, ...]
    caches: tuple[str, ...]
    index: tuple[str, ...]
    schemes: tuple[str, ...]

    @property
    def all_caches(self) -> tuple[str, ...]:
        """Layouts of window and compressed rows, with those that only plain torch reads."""
        return tuple(dict.fromkeys((*self.caches, *PLAIN)))

    @property
    def all_index(self) -> tuple[str, ...]:
        """Layouts of the indexer's rows, likewise."""
        return tuple(dict.fromkeys((*self.index, *PLAIN)))

    @property
    def weights(self) -> tuple[str, ...]:
        """Weight schemes: what is not multiplied as stored is dequantised on the device."""
        return tuple(dict.fromkeys((*self.schemes, *WEIGHTS)))


_INT8_CHIP = {
    "caches": ("rows_bf16_fp8", "rows_bf16"),
    "index": ("index_int8_130", "index_bf16_mxfp4"),
    "schemes": ("w8a8_int8", "w4a8_int_256"),
}

CHIPS = {
    "ascend:a2": Chip(soc=("Ascend910B",), **_INT8_CHIP),
    "ascend:a3": Chip(soc=("Ascend910_93", "Ascend910C"), **_INT8_CHIP),
    "ascend:a5": Chip(
        soc=("Ascend950",),
        caches=("v4_640",),
        index=("index_fp8_132",),
        schemes=("mxfp8", "fp8_block128", "mxfp4"),
    ),
}
"""By the name of the target; `soc` is how `torch.npu.get_device_name()` begins."""


def chip_of(target: str) -> Chip | None:
    """The data of a target, None for a chip that only plain torch serves (310P)."""
    return CHIPS.get(target)
