"""What this backend's kernels can do, best first: adapters onto torch_mlu_ops, then plain torch."""

from __future__ import annotations

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

__all__ = ["kernels"]

SHAPES = ((True, 4, 128), (True, 4, 512), (False, 128, 512))
"""(overlap, ratio, head_dim) of the vendor's compressor."""

EXACT_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name != "int8_token")
"""Quantisers whose values bfloat16 holds exactly."""


def kernels(target: Target) -> list[Kernel]:
    """Kernels for a card. A vendor operator that is not installed is a reason, not a silence."""
    dtypes = tuple(name for name in DTYPES if name != "bfloat16" or "bf16_mma" in target.features)
    return [*_vendor(target, tuple(name for name in dtypes if name != "float32")), *_plain(dtypes)]


def _vendor(target: Target, halves: tuple[str, ...]) -> list[Kernel]:
    def kernel(
        id: str, contract: str, function: str, operators: str, *constraints: Constraint, sync: bool = False
    ) -> Kernel:
        needed = tuple(_offers(target, name) for name in operators.split())
        return Kernel(
            id=f"mlu.{id}",
            contract=contract,
            code=f"hal_mlu.{function}",
            constraints=(*needed, *constraints),
            host_sync=sync,
            notes=f"torch_mlu_ops: {', '.join(operators.split())}.",
        )

    def floats(*arguments: str, of: tuple[str, ...] = halves) -> list[Constraint]:
        return [dtype(argument).one_of(*of) for argument in arguments]

    attends = [
        *floats("q", of=tuple(name for name in halves if name == "bfloat16")),
        layout("window").one_of(*PAGED_ROWS),
        layout("compressed").one_of(*PAGED_ROWS),
        layout("rows").one_of("selected"),
        attribute("window_size").between(1, 1 << 16),
        dim("heads").between(1, 128),
    ]
    both = check(lambda facts: "compressed" in facts.layouts, says="a cache of compressed rows")
    pools = check(_pools, says=f"(overlap, ratio, head_dim) one of {', '.join(map(str, SHAPES))}")
    index = layout("cache").one_of(*INDEX_ROWS)
    exact = [
        *floats("x", of=tuple(name for name in halves if name == "bfloat16")),
        attribute("activation").one_of(*EXACT_ACTIVATIONS),
    ]
    eight, four = layout("weight").one_of("w8a8_int8"), layout("weight").one_of("w4a8_int")
    int8 = attribute("activation").one_of("int8_token")
    pair = "group_gemm moe_active"
    return [
        kernel(
            "attend.fused",
            "attn.attend",
            "attention:attend_fused",
            "sliding_window_compress_attention",
            *attends,
            both,
            layout("lse").one_of("none"),
        ),
        kernel(
            "attend.merged",
            "attn.attend",
            "attention:attend_merged",
            "single_query_cached_kv_attn update_out_and_lse",
            *attends,
        ),
        kernel(
            "attend.joined",
            "attn.attend",
            "attention:attend_joined",
            "single_query_cached_kv_attn concat_block_table",
            *attends,
            both,
        ),
        kernel(
            "select",
            "attn.select",
            "selection:select",
            "masked_indexer_select_paged_kv",
            dtype("q").one_of("bfloat16"),
            index,
            dim("index_heads").between(1, 64),
            dim("index_dim").one_of(128),
        ),
        kernel("compress_pool", "attn.compress_pool", "compression:compress_pool", "fused_compress_multi_kv", pools),
        kernel(
            "store",
            "attn.store",
            "compression:store",
            "apply_rotary reshape_paged_cache",
            *floats("values", of=DTYPES if "bfloat16" in halves else halves),
            layout("cache").one_of(*dict.fromkeys((*PAGED_ROWS, *INDEX_ROWS))),
        ),
        kernel(
            "route.softplus",
            "moe.route",
            "experts:route",
            "moe_softplus_topk",
            attribute("scoring").one_of("sqrtsoftplus"),
        ),
        kernel(
            "route.sigmoid",
            "moe.route",
            "experts:route",
            "moe_sigmoid_topk",
            attribute("scoring").one_of("sigmoid"),
            check(lambda facts: "vocab" not in facts.dims, says="no table of token ids"),
        ),
        kernel(
            "dispatch",
            "moe.dispatch",
            "experts:dispatch",
            "moe_gen_idx moe_expand_input int8_rows",
            *floats("x", of=DTYPES if "bfloat16" in halves else halves),
            attribute("activation").one_of(*ACTIVATIONS),
        ),
        kernel(
            "experts.int8",
            "moe.experts",
            "experts:experts_int8",
            "smooth_quant_group_gemm moe_active int8_rows",
            layout("w13").one_of("w8a8_int8", "w4a8_int"),
            layout("w2").one_of("w8a8_int8", "w4a8_int"),
            int8,
        ),
        kernel(
            "experts.exact",
            "moe.experts",
            "experts:experts_exact",
            pair,
            layout("w13").one_of(*EXACT_IN_BF16),
            layout("w2").one_of(*EXACT_IN_BF16),
            *exact[1:],
            sync=True,
        ),
        kernel("combine", "moe.combine", "experts:combine", "moe_combine_result", *floats("rows")),
        kernel("quantize.int8", "quant.quantize", "matmul:quantize", "int8_rows", int8),
        kernel("matmul.int8", "quant.matmul", "matmul:matmul_int8", "int8_rows int8_matmul", *floats("x"), eight, int8),
        kernel(
            "matmul.int4", "quant.matmul", "matmul:matmul_int4", "scaled_matmul int8_rows", *floats("x"), four, int8
        ),
        kernel(
            "matmul.exact",
            "quant.matmul",
            "matmul:matmul_exact",
            "matmul",
            layout("weight").one_of(*EXACT_IN_BF16),
            *exact,
        ),
    ]


def _pools(facts: Facts) -> bool:
    shape = tuple(facts.attributes.get(name) for name in ("overlap", "ratio"))
    return (*shape, facts.dims.get("head_dim")) in SHAPES


def _offers(target: Target, capability: str) -> Constraint:
    """Holds where the installed torch_mlu_ops has the operator; for a chip that is not here, the newest one has all."""
    if not target.present:
        return check(lambda facts: True, says=capability)
    from hal_mlu import tmo

    here = tmo.offered(capability)
    return check(lambda facts: here, says=f"torch_mlu_ops with {capability} (1.12.1 has it)")


def _plain(dtypes: tuple[str, ...]) -> list[Kernel]:
    """Plain torch on the device: every contract, whatever the shapes."""

    def kernel(name: str, contract: str, module: str, *constraints: Constraint, notes: str) -> Kernel:
        return Kernel(
            id=f"mlu.{name}.torch",
            contract=contract,
            code=f"hal_mlu.plain.{module}:{name}",
            constraints=constraints,
            host_sync=True,
            notes=notes,
        )

    def floats(*arguments: str) -> list[Constraint]:
        return [dtype(argument).one_of(*dtypes) for argument in arguments]

    weights = [layout("w13").one_of(*WEIGHTS), layout("w2").one_of(*WEIGHTS)]
    activation = attribute("activation").one_of(*ACTIVATIONS)
    index = layout("cache").one_of(*dict.fromkeys((*CACHES, *INDEX)))
    return [
        kernel(
            "attend",
            "attn.attend",
            "attention",
            *floats("q"),
            layout("window").one_of(*CACHES),
            layout("compressed").one_of(*CACHES),
            notes="Rows gathered for some queries at a time.",
        ),
        kernel("select", "attn.select", "selection", *floats("q", "weights"), index, notes="All heads, some queries."),
        kernel("index_scores", "attn.index_scores", "selection", *floats("q", "weights"), index, notes="As select."),
        kernel("compress_pool", "attn.compress_pool", "compression", notes="All windows of a batch at once."),
        kernel("store", "attn.store", "compression", *floats("values"), index, notes="hal.layouts on the device."),
        kernel("route", "moe.route", "experts", notes="Ties go to the lowest expert."),
        kernel("dispatch", "moe.dispatch", "experts", *floats("x"), activation, notes="A stable sort by expert."),
        kernel("experts", "moe.experts", "experts", *weights, activation, notes="One expert after the other."),
        kernel("combine", "moe.combine", "experts", *floats("rows"), notes="Float32 sums in slot order."),
        kernel(
            "quantize",
            "quant.quantize",
            "matmul",
            *floats("x"),
            attribute("activation").one_of(*ACTIVATIONS[1:]),
            notes="hal.formats on the device.",
        ),
        kernel(
            "matmul",
            "quant.matmul",
            "matmul",
            *floats("x"),
            layout("weight").one_of(*WEIGHTS),
            activation,
            notes="Float32 products with the dequantised weight.",
        ),
    ]
