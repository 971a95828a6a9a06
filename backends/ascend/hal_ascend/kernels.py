"""What this backend's kernels can do, best first: adapters onto vendor operators, then plain torch."""

from __future__ import annotations

import hal_plain.declared as plain

from hal.constraints import Constraint, attribute, dim, dtype, layout, needs
from hal.kernel import Kernel
from hal.target import Target
from hal_ascend.layouts import ACTIVATIONS, DTYPES, PLAIN, WEIGHTS, chip_of
from hal_ascend.offers import offers

__all__ = ["kernels"]

HALVES = ("bfloat16", "float16")
E4M3 = ("e4m3_128", "e4m3_64", "e4m3_32")
MX_WEIGHTS = ("mxfp8", "fp8_block128")


def kernels(target: Target) -> list[Kernel]:
    """Kernels for a chip. An operator that is not installed is a reason, not a silence."""
    chip = chip_of(target.name)
    fallback = plain.kernels(
        "ascend",
        dtypes=DTYPES,
        caches=chip.all_caches if chip else PLAIN,
        index=chip.all_index if chip else PLAIN,
        weights=WEIGHTS,
        activations=ACTIVATIONS,
    )
    return [*_vendor(target), *fallback] if chip else fallback


def _vendor(target: Target) -> list[Kernel]:
    def kernel(name: str, contract: str, function: str, operators: str, *constraints: Constraint) -> Kernel:
        called = operators.split()
        return Kernel(
            id=f"ascend.{name}",
            contract=contract,
            code=f"hal_ascend.{function}",
            constraints=(offers(target, *called), *constraints),
            notes=f"torch_npu: {', '.join(called)}.",
        )

    halves = dtype("x").one_of(*HALVES)
    int8, mx = attribute("activation").one_of("int8_token"), attribute("activation").one_of(*E4M3)
    grouped = "npu_grouped_matmul"
    return [
        kernel(
            "route",
            "moe.route",
            "routing:route",
            "npu_moe_gating_top_k",
            attribute("scoring").one_of("sqrtsoftplus", "sigmoid"),
            dim("experts").between(1, 2048),
        ),
        kernel(
            "dispatch",
            "moe.dispatch",
            "routing:dispatch",
            "npu_moe_init_routing_v2",
            halves,
            attribute("activation").one_of("none", "int8_token", *E4M3),
        ),
        kernel(
            "combine",
            "moe.combine",
            "routing:combine",
            "npu_moe_finalize_routing",
            dtype("rows").one_of(*HALVES),
        ),
        kernel(
            "experts.int8",
            "moe.experts",
            "experts:experts_int8",
            f"{grouped} npu_dynamic_quant",
            needs("int8_mma"),
            int8,
            layout("w13").one_of("w8a8_int8"),
            layout("w2").one_of("w8a8_int8"),
        ),
        kernel(
            "experts.mx",
            "moe.experts",
            "experts:experts_mx",
            grouped,
            needs("mx_scaled_mma"),
            mx,
            layout("w13").one_of("mxfp8", "mxfp4"),
            layout("w2").one_of("mxfp8", "mxfp4"),
        ),
        kernel("quantize", "quant.quantize", "matmul:quantize", "npu_dynamic_quant", halves, int8),
        kernel(
            "matmul.int8",
            "quant.matmul",
            "matmul:matmul_int8",
            "npu_quant_matmul npu_dynamic_quant",
            needs("int8_mma"),
            halves,
            int8,
            layout("weight").one_of("w8a8_int8"),
        ),
        kernel(
            "matmul.mx",
            "quant.matmul",
            "matmul:matmul_mx",
            "npu_quant_matmul",
            needs("mx_scaled_mma"),
            halves,
            mx,
            layout("weight").one_of(*MX_WEIGHTS),
            dim("features").multiple_of(128),
        ),
    ]
