"""What this backend's kernels can do, best first: adapters onto torch_mlu_ops, then plain torch."""

from __future__ import annotations

import hal_plain.declared as plain

from hal.constraints import Constraint, Facts, attribute, check, dim, dtype, layout
from hal.kernel import Kernel
from hal.target import Target
from hal_mlu.layouts import (
    ACTIVATIONS,
    CACHES,
    DTYPES,
    EXACT_IN_BF16,
    INDEX,
    INDEX_ROWS,
    PAGED_ROWS,
    WEIGHTS,
)

__all__ = ["kernels", "operators"]

SHAPES = ((True, 4, 128), (True, 4, 512), (False, 128, 512))
"""(overlap, ratio, head_dim) of the vendor's compressor."""

FLOAT8 = "float8_products"
"""As in `hal_mlu.tmo`: found by trying."""

NEWEST_WIDTHS = (1, 7168)
"""Channels that the newest `fused_mhc_post` takes."""

EXACT_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name != "int8_token")
"""Quantisers whose values bfloat16 holds exactly."""


def kernels(target: Target) -> list[Kernel]:
    """Kernels for a card: those whose operators the installed torch_mlu_ops has; all of them for a card elsewhere.

    Adapters for bfloat16 only are left out on cards without it.
    """
    floats = tuple(name for name in DTYPES if name != "bfloat16" or "bf16_mma" in target.features)
    adapters = _installed(floats) if target.present else _published(floats)
    adapters = [made for made in adapters if all(rule.yes for rule in made.constraints if rule.kind == "dtype")]
    behind = plain.kernels("mlu", dtypes=floats, caches=CACHES, index=INDEX, weights=WEIGHTS, activations=ACTIVATIONS)
    return [*adapters, *behind]


def operators() -> list[str]:
    """Operators of torch_mlu_ops that any adapter calls."""
    return list(dict.fromkeys(name for names, _ in _adapters(DTYPES) for name in names if name != FLOAT8))


def _published(floats: tuple[str, ...]) -> list[Kernel]:
    """Those of a card that is elsewhere: whether it multiplies 8-bit floats is not published."""
    return [made for names, made in _adapters(floats) if FLOAT8 not in names]


def _installed(floats: tuple[str, ...]) -> list[Kernel]:
    from hal_mlu import tmo

    widths = NEWEST_WIDTHS if tmo.streams_of_any_width() else (4096, 4096)
    return [made for names, made in _adapters(floats, widths) if all(tmo.offered(name) for name in names)]


Adapter = tuple[tuple[str, ...], Kernel]
"""Operators of torch_mlu_ops, and the kernel that calls them."""


def _adapter(
    id: str, contract: str, code: str, operators: str, *rules: Constraint, sync: bool = False, hidden: str = ""
) -> Adapter:
    """`hidden`: what an expert's gate and up are rounded to, where not float32."""
    names = tuple(operators.split())
    notes = f"torch_mlu_ops: {', '.join(names)}." + (f" Gate and up are rounded to {hidden}." if hidden else "")
    precision = (("hidden", hidden),) if hidden else ()
    code = f"hal_mlu.{code}"
    return names, Kernel(f"mlu.{id}", contract, code, rules, host_sync=sync, precision=precision, notes=notes)


def _adapters(floats: tuple[str, ...], widths: tuple[int, int] = NEWEST_WIDTHS) -> list[Adapter]:
    """Best first. `floats` are the card's dtypes, `widths` the channels that `fused_mhc_post` takes."""
    halves = tuple(name for name in floats if name != "float32")
    bf16 = tuple(name for name in floats if name == "bfloat16")
    return [
        *_of_attention(floats, bf16),
        *_of_experts(floats, halves),
        *_of_matmul(halves, bf16),
        *_of_streams(floats, halves, widths),
    ]


def _of_attention(floats: tuple[str, ...], bf16: tuple[str, ...]) -> list[Adapter]:
    seen = [
        dtype("q").one_of(*bf16),
        layout("window").one_of(*PAGED_ROWS),
        attribute("window_size").between(1, 1 << 16),
        dim("heads").between(1, 128),
    ]
    attends = [*seen, layout("compressed").one_of(*PAGED_ROWS), layout("rows").one_of("selected")]
    alone = check(lambda facts: "compressed" not in facts.layouts, says="no compressed rows")
    both = check(lambda facts: "compressed" in facts.layouts, says="a cache of compressed rows")
    shapes = check(_pools, says=f"(overlap, ratio, head_dim) one of {', '.join(map(str, SHAPES))}")
    return [
        _adapter(
            "attend.fused",
            "attn.attend",
            "attention:attend_fused",
            "sliding_window_compress_attention",
            *attends,
            both,
            layout("lse").one_of("none"),
        ),
        _adapter(
            "attend.window",
            "attn.attend",
            "attention:attend_window",
            "single_query_cached_kv_attn attention_with_sink",
            *seen,
            alone,
            layout("lse").one_of("none"),
        ),
        _adapter(
            "attend.merged",
            "attn.attend",
            "attention:attend_merged",
            "single_query_cached_kv_attn update_out_and_lse",
            *attends,
        ),
        _adapter(
            "attend.joined",
            "attn.attend",
            "attention:attend_joined",
            "single_query_cached_kv_attn attention_with_sink concat_block_table",
            *attends,
            both,
            layout("lse").one_of("none"),
        ),
        _adapter(
            "select",
            "attn.select",
            "selection:select",
            "masked_indexer_select_paged_kv",
            dtype("q").one_of(*bf16),
            layout("cache").one_of(*INDEX_ROWS),
            dim("index_heads").between(1, 64),
            dim("index_dim").one_of(128),
        ),
        _adapter(
            "compress",
            "attn.compress",
            "compression:compress",
            "fused_compress_single_kv fused_compress_multi_kv compressor_with_paged_state "
            "apply_rotary reshape_paged_cache",
            dtype("x").one_of(*bf16),
            layout("cache").one_of(*dict.fromkeys((*PAGED_ROWS, *INDEX_ROWS))),
            shapes,
        ),
        _adapter(
            "compress_pool",
            "attn.compress_pool",
            "compression:compress_pool",
            "fused_compress_multi_kv compressor_with_paged_state",
            shapes,
        ),
        _adapter(
            "store",
            "attn.store",
            "compression:store",
            "apply_rotary reshape_paged_cache",
            dtype("values").one_of(*floats),
            layout("cache").one_of(*dict.fromkeys((*PAGED_ROWS, *INDEX_ROWS))),
        ),
    ]


def _of_experts(floats: tuple[str, ...], halves: tuple[str, ...]) -> list[Adapter]:
    int8 = ("w8a8_int8", "w4a8_int")
    blocks = [layout(weight).one_of("fp8_block128") for weight in ("w13", "w2")]
    micro = [layout(weight).one_of("mxfp4", "mxfp8") for weight in ("w13", "w2")]
    return [
        _adapter(
            "route.softplus",
            "moe.route",
            "experts:route",
            "moe_softplus_topk",
            attribute("scoring").one_of("sqrtsoftplus"),
        ),
        _adapter(
            "route.sigmoid",
            "moe.route",
            "experts:route",
            "moe_sigmoid_topk",
            attribute("scoring").one_of("sigmoid"),
            check(lambda facts: "vocab" not in facts.dims, says="no table of token ids"),
        ),
        _adapter(
            "dispatch",
            "moe.dispatch",
            "experts:dispatch",
            "moe_gen_idx moe_expand_input int8_rows",
            dtype("x").one_of(*floats),
            attribute("activation").one_of(*ACTIVATIONS),
        ),
        _adapter(
            "experts.int8",
            "moe.experts",
            "experts:experts_int8",
            "smooth_quant_group_gemm moe_active int8_rows",
            layout("w13").one_of(*int8),
            layout("w2").one_of(*int8),
            attribute("activation").one_of("int8_token"),
            hidden="bfloat16",
        ),
        _adapter(
            "experts.fp8",
            "moe.experts",
            "experts:experts_fp8",
            "smooth_quant_group_gemm moe_active float8_products",
            *blocks,
            dim("hidden").multiple_of(128),
            dim("inter").multiple_of(128),
            attribute("activation").one_of("e4m3_128"),
            hidden="bfloat16",
        ),
        _adapter(
            "experts.mx",
            "moe.experts",
            "experts:experts_fp8",
            "smooth_quant_group_gemm moe_active float8_products",
            *micro,
            dim("hidden").multiple_of(32),
            dim("inter").multiple_of(32),
            attribute("activation").one_of("e4m3_128"),
            hidden="bfloat16",
        ),
        _adapter(
            "experts.exact",
            "moe.experts",
            "experts:experts_exact",
            "group_gemm moe_active",
            layout("w13").one_of(*EXACT_IN_BF16),
            layout("w2").one_of(*EXACT_IN_BF16),
            attribute("activation").one_of(*EXACT_ACTIVATIONS),
            sync=True,
        ),
        _adapter("combine", "moe.combine", "experts:combine", "moe_combine_result", dtype("rows").one_of(*halves)),
    ]


def _of_matmul(halves: tuple[str, ...], bf16: tuple[str, ...]) -> list[Adapter]:
    int8 = attribute("activation").one_of("int8_token")
    return [
        _adapter("quantize.int8", "quant.quantize", "matmul:quantize", "int8_rows", int8),
        _adapter(
            "matmul.int8",
            "quant.matmul",
            "matmul:matmul_int8",
            "int8_rows int8_matmul",
            dtype("x").one_of(*halves),
            layout("weight").one_of("w8a8_int8"),
            int8,
        ),
        _adapter(
            "matmul.int4",
            "quant.matmul",
            "matmul:matmul_int4",
            "int8_rows scaled_matmul",
            dtype("x").one_of(*halves),
            layout("weight").one_of("w4a8_int"),
            int8,
        ),
        _adapter(
            "matmul.fp8",
            "quant.matmul",
            "matmul:matmul_fp8",
            "scaled_matmul float8_products",
            dtype("x").one_of(*halves),
            layout("weight").one_of("fp8_block128"),
            attribute("activation").one_of("e4m3_128"),
            dim("features").multiple_of(128),
            dim("outputs").multiple_of(128),
        ),
        _adapter(
            "matmul.exact",
            "quant.matmul",
            "matmul:matmul_exact",
            "matmul",
            dtype("x").one_of(*bf16),
            layout("weight").one_of(*EXACT_IN_BF16),
            attribute("activation").one_of(*EXACT_ACTIVATIONS),
        ),
    ]


def _of_streams(floats: tuple[str, ...], halves: tuple[str, ...], widths: tuple[int, int]) -> list[Adapter]:
    return [
        _adapter(
            "mhc_pre",
            "mhc.pre",
            "mhc:pre",
            "hc_split_sinkhorn fused_mul_reduce_sum",
            dtype("streams").one_of(*halves),
            dim("streams").between(1, 8),
            dim("hidden").between(1, 4096),
        ),
        _adapter(
            "mhc_post",
            "mhc.post",
            "mhc:post",
            "fused_mhc_post",
            dtype("streams").one_of(*floats),
            dim("streams").one_of(4),
            dim("hidden").between(*widths),
        ),
    ]


def _pools(facts: Facts) -> bool:
    said = (facts.attributes.get("overlap"), facts.attributes.get("ratio"), facts.dims.get("head_dim"))
    return said in SHAPES
