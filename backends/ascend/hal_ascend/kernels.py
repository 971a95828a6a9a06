"""What this backend's kernels can do, best first: adapters onto vendor operators, then plain torch."""

from __future__ import annotations

from collections.abc import Callable

import hal_plain.declared as plain

from hal.constraints import Constraint, Facts, attribute, check, dim, dtype, layout
from hal.kernel import Kernel
from hal.target import Target
from hal_ascend import declared
from hal_ascend.declared import HALVES
from hal_ascend.layouts import ACTIVATIONS, DTYPES, PLAIN, WEIGHTS, chip_of
from hal_ascend.offers import offers

__all__ = ["kernels"]

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
    return [*_vendor(target), *fallback, *declared.on_request(target)] if chip else fallback


def _vendor(target: Target) -> list[Kernel]:
    made: list[Kernel] = []

    def kernel(
        name: str, contract: str, function: str, operators: str, *constraints: Constraint, only: str = ""
    ) -> None:
        if not only or only in target.features:
            called = operators.split()
            words = f"Calls {', '.join(called)}." if called else "One product of torch's own."
            code = f"hal_ascend.{function}"
            made.append(Kernel(f"ascend.{name}", contract, code, (*offers(target, *called), *constraints), notes=words))

    halves = dtype("x").one_of(*HALVES)
    int8, mx = attribute("activation").one_of("int8_token"), attribute("activation").one_of(*E4M3)
    grouped = "npu_grouped_matmul"

    def of(*schemes: str) -> tuple[Constraint, ...]:
        return layout("w13").one_of(*schemes), layout("w2").one_of(*schemes)

    kernel(
        "route",
        "moe.route",
        "routing:route",
        "npu_moe_gating_top_k",
        attribute("scoring").one_of("sqrtsoftplus", "sigmoid"),
        dim("experts").between(1, 2048),
    )
    kernel(
        "dispatch",
        "moe.dispatch",
        "routing:dispatch",
        "npu_moe_init_routing_v2",
        halves,
        attribute("activation").one_of("none", "int8_token", *(() if "fp8_mma" in target.features else E4M3)),
    )
    kernel(
        "dispatch.mx",
        "moe.dispatch",
        "routing:dispatch_mx",
        "npu_moe_init_routing_v2 npu_dynamic_mx_quant",
        halves,
        mx,
        only="mx_scaled_mma",
    )
    kernel(
        "combine",
        "moe.combine",
        "routing:combine",
        "npu_moe_finalize_routing",
        dtype("rows").one_of(*HALVES),
    )
    kernel(
        "experts.int8",
        "moe.experts",
        "experts:experts_int8",
        f"{grouped} npu_dynamic_quant",
        int8,
        *of("w8a8_int8"),
    )
    kernel(
        "experts.mx",
        "moe.experts",
        "experts:experts_mx",
        f"{grouped} npu_dynamic_mx_quant",
        mx,
        *of("mxfp8", "mxfp4"),
        only="mx_scaled_mma",
    )
    exchange = f"npu_moe_distribute_dispatch_v2 npu_moe_distribute_combine_v2 {grouped}"
    width = dtype("x").one_of("bfloat16"), dim("hidden").between(1, 8128), dim("top_k").between(1, 16)
    kernel(
        "ffn.int8",
        "moe.ffn",
        "exchange:ffn",
        f"{exchange} npu_dynamic_quant",
        *width,
        int8,
        *of("w8a8_int8"),
        only="token_exchange",
    )
    kernel(
        "ffn.mx",
        "moe.ffn",
        "exchange:ffn",
        f"{exchange} npu_dynamic_mx_quant",
        *width,
        mx,
        *of("mxfp8", "mxfp4"),
        only="mx_scaled_mma",
    )
    kernel("quantize.int8", "quant.quantize", "quantization:quantize_int8", "npu_dynamic_quant", halves, int8)
    kernel(
        "quantize.mx",
        "quant.quantize",
        "quantization:quantize_mx",
        "npu_dynamic_mx_quant",
        halves,
        mx,
        only="mx_scaled_mma",
    )
    kernel(
        "matmul.int8",
        "quant.matmul",
        "matmul:matmul_int8",
        "npu_quant_matmul npu_dynamic_quant",
        halves,
        int8,
        layout("weight").one_of("w8a8_int8"),
    )
    kernel(
        "matmul.mx",
        "quant.matmul",
        "matmul:matmul_mx",
        "npu_quant_matmul npu_dynamic_mx_quant",
        halves,
        mx,
        layout("weight").one_of(*MX_WEIGHTS),
        dim("features").multiple_of(128),
        only="mx_scaled_mma",
    )
    kernel(
        "matmul.hif8",
        "quant.matmul",
        "matmul:matmul_hif8",
        "npu_weight_quant_batchmatmul",
        dtype("x").one_of("bfloat16"),
        attribute("activation").one_of("none"),
        layout("weight").one_of("hif8"),
        only="mx_scaled_mma",
    )
    kernel(
        "matmul.bf16",
        "quant.matmul",
        "matmul:matmul_bf16",
        "",
        dtype("x").one_of("bfloat16"),
        attribute("activation").one_of("none", *E4M3),
        layout("weight").one_of("bf16", *MX_WEIGHTS, "mxfp4"),
    )
    _attention(kernel, target)
    _hyper(kernel)
    return [*made, *declared.int4(target)]


def _attention(kernel: Callable[..., None], target: Target) -> None:
    """Operators of vllm-ascend's package. They exist for DeepSeek-V4's own sizes only."""
    packed = "fp8_mma" in target.features
    rows = ("v4_640",) if packed else ("rows_bf16_fp8", "rows_bf16")
    operator = "npu_kv_quant_sparse_attn_sharedkv" if packed else "npu_sparse_attn_sharedkv"
    kernel(
        "attend",
        "attn.attend",
        f"attention:{'attend_packed' if packed else 'attend_bf16'}",
        f"{operator} {operator}_metadata",
        dtype("q").one_of("bfloat16"),
        dim("head_dim").one_of(512),
        dim("heads").one_of(*((64, 128) if packed else (64,))),
        dim("top_k").one_of(*((512, 1024) if packed else (512,))),
        layout("window").one_of(*rows),
        layout("compressed").one_of(*rows),
        layout("rows").one_of("selected"),
        layout("lse").one_of("none"),
        attribute("window_size").one_of(128),
        attribute("ratio").one_of(0, 4, 128),
    )
    indexer = "npu_vllm_quant_lightning_indexer"
    kernel(
        "select",
        "attn.select",
        "selection:select",
        f"{indexer} {indexer}_metadata",
        dtype("q").one_of("bfloat16"),
        dim("index_heads").one_of(64),
        dim("index_dim").one_of(128),
        attribute("top_k").one_of(512),
        attribute("ratio").one_of(4),
        layout("cache").one_of("index_fp8_132" if packed else "index_int8_130"),
    )
    kernel(
        "compress",
        "attn.compress",
        "compression:compress",
        "compressor kv_compress_epilog" if packed else "compressor",
        dtype("x").one_of("bfloat16"),
        dim("head_dim").one_of(128, 512),
        check(_compresses, says="(overlap, ratio) is (yes, 4) or (no, 128)"),
        layout("cache").one_of(*rows, "index_fp8_132" if packed else "index_int8_130"),
        only="compressor",
    )
    kernel(
        "store",
        "attn.store",
        "compression:store",
        "kv_compress_epilog",
        dtype("values").one_of("bfloat16"),
        dim("head_dim").one_of(512),
        layout("cache").one_of("v4_640"),
        only="fp8_mma",
    )


def _hyper(kernel: Callable[..., None]) -> None:
    """Likewise of vllm-ascend's package, for the published widths."""
    sizes = dim("streams").one_of(4), dim("hidden").one_of(4096, 7168)
    halves = dtype("streams").one_of("bfloat16")
    kernel("hc_pre", "mhc.pre", "hyper:pre", "npu_hc_pre_v2", halves, *sizes)
    kernel("hc_post", "mhc.post", "hyper:post", "npu_hc_post", dtype("y").one_of("bfloat16"), halves, *sizes)


def _compresses(facts: Facts) -> bool:
    return (facts.attributes.get("overlap"), facts.attributes.get("ratio")) in ((True, 4), (False, 128))
