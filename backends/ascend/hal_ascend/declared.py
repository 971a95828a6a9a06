"""Kernels of A2 and A3 that round otherwise than their contracts promise, and say where."""

from __future__ import annotations

from math import inf

from hal.constraints import Constraint, attribute, check, dim, dtype, layout
from hal.kernel import Kernel
from hal.target import Target
from hal_ascend.offers import offers

__all__ = ["HALVES", "int4", "on_request"]

HALVES = ("bfloat16", "float16")


def int4(target: Target) -> list[Kernel]:
    """Two halves of an int8 row times int4, in groups that are added in float16 (A2 and A3)."""
    if "fp8_mma" in target.features:
        return []
    accumulate = ("accumulate", "float16_256")

    def kernel(name: str, contract: str, function: str, operator: str, *constraints: Constraint) -> Kernel:
        return Kernel(
            f"ascend.{name}",
            contract,
            f"hal_ascend.{function}",
            (
                *offers(target, operator, "npu_dynamic_quant"),
                attribute("activation").one_of("int8_token"),
                *constraints,
            ),
            precision=(accumulate, ("hidden", "float16")) if contract == "moe.experts" else (accumulate,),
            notes=f"Calls {operator}, npu_dynamic_quant; groups of 256 products are added in float16.",
        )

    return [
        kernel(
            "experts.int4",
            "moe.experts",
            "experts:experts_int4",
            "npu_grouped_matmul",
            layout("w13").one_of("w4a8_int_256"),
            layout("w2").one_of("w4a8_int_256"),
            dim("hidden").multiple_of(256),
            dim("hidden").between(256, 18432),
            dim("inter").multiple_of(256),
            dim("inter").between(256, 18432),
        ),
        kernel(
            "matmul.int4",
            "quant.matmul",
            "matmul:matmul_int4",
            "npu_quant_matmul",
            dtype("x").one_of(*HALVES),
            layout("weight").one_of("w4a8_int_256"),
            dim("features").multiple_of(256),
            dim("features").between(256, 29440),
            dim("outputs").multiple_of(8),
        ),
    ]


def on_request(target: Target) -> list[Kernel]:
    """Behind all others, for who names one with HAL_OPS: they keep weights twice, and round otherwise than promised."""
    if "fp8_mma" in target.features:
        return []
    int8 = (
        dtype("x").one_of("bfloat16"),
        attribute("activation").one_of("int8_token"),
        layout("w13").one_of("w8a8_int8"),
        layout("w2").one_of("w8a8_int8"),
    )
    unrounded = "nothing is rounded before the second product"
    limited, unlimited = "grouped_matmul_swiglu_quant_v2", "npu_grouped_matmul_swiglu_quant_v2"
    others = "npu_moe_token_permute", "npu_moe_token_unpermute"
    inside = (
        *offers(target, *others, "npu_grouped_matmul", "npu_dynamic_quant"),
        *int8,
        dim("hidden").multiple_of(16),
        dim("inter").multiple_of(16),
        dim("inter").between(16, 5120),
    )
    finite = check(lambda facts: facts.attributes.get("clamp") != inf, says="a finite clamp")
    within = [
        Kernel(
            f"ascend.ffn.{name}",
            "moe.ffn",
            "hal_ascend.gated:ffn",
            (*offers(target, first), clamps, *inside),
            precision=(("inner", "float32"),),
            notes=f"Calls {', '.join((first, *others))}: {unrounded}.",
        )
        for name, first, clamps in (
            ("gated", limited, finite),
            ("unlimited", unlimited, attribute("clamp").one_of(inf)),
        )
    ]
    operator = "dispatch_ffn_combine"
    between = Kernel(
        "ascend.ffn.fused",
        "moe.ffn",
        "hal_ascend.fused:ffn",
        (
            *offers(target, operator),
            *offers(target, limited),
            finite,
            *inside,
            dim("hidden").multiple_of(128),
            dim("inter").multiple_of(128),
        ),
        precision=(("hidden", "float16"), ("inner", "float32")),
        notes=f"Calls {operator}: gate and up are rounded to float16, {unrounded}.",
    )
    return [between, *within] if "token_exchange" in target.features else within
