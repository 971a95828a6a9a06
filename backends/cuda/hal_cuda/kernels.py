"""What this backend's kernels can do: libraries first where they take a call, then the Triton kernels."""

from __future__ import annotations

from typing import Any

from hal.constraints import Constraint, Facts, attribute, check, dim, dtype, layout
from hal.kernel import Kernel
from hal_cuda.layouts import (
    ACTIVATIONS,
    BLOCK_ACTIVATIONS,
    CACHES,
    DTYPES,
    INDEX,
    QUANTISED,
    STORED,
    WEIGHTS,
)

POWERS = (16, 32, 64, 128, 256, 512)


def _triton(contract: str, module: str, *constraints: Constraint, notes: str, **flags: Any) -> Kernel:
    name = contract.split(".")[1]
    flags = {"id": f"cuda.{name}", "code": f"hal_triton.{module}:{name}", "capturable": True, **flags}
    return Kernel(contract=contract, constraints=constraints, notes=notes, **flags)


def _same_rows(facts: Facts) -> bool:
    """Both caches in v4_584, or both in rows of bfloat16."""
    names = [facts.layouts[name] for name in ("window", "compressed") if facts.layouts.get(name)]
    return len({name == "v4_584" for name in names}) < 2


def _multiplies(*weights: str) -> Constraint:
    """int8 activations meet int8 weights and nothing else."""

    def holds(facts: Facts) -> bool:
        integer = facts.attributes.get("activation") == "int8_token"
        schemes = [facts.layouts[name] for name in weights if facts.layouts.get(name)]
        return all((scheme == "w8a8_int8") == integer for scheme in schemes)

    return check(
        holds,
        says="int8_token activations with w8a8_int8 weights, other activations with other weights",
        yes=tuple({"activation": "int8_token", **dict.fromkeys(weights, "w8a8_int8")} for _ in (0,)),
        no=({"activation": "none", **dict.fromkeys(weights, "w8a8_int8")},),
    )


ATTEND = (
    dtype("q").one_of("bfloat16"),
    layout("window").one_of(*CACHES),
    layout("compressed").one_of(*CACHES),
    check(
        _same_rows,
        says="window and compressed rows both in v4_584, or both in rows of bfloat16",
        yes=({"window": "v4_584", "compressed": "v4_584"},),
        no=({"window": "v4_584", "compressed": "rows_bf16"},),
    ),
    dim("head_dim").one_of(*POWERS),
)

STORE = (layout("cache").one_of(*STORED), dim("head_dim").one_of(*POWERS))

TRITON = (
    _triton(
        "attn.attend",
        "attention",
        *ATTEND,
        notes="Rows read from their pages in place; few tokens over long rows are cut into parts and merged.",
    ),
    _triton(
        "attn.attend",
        "attention",
        *ATTEND,
        id="cuda.attend_whole",
        code="hal_triton.attention:attend_whole",
        batch_invariant=True,
        notes="Never cut: a token's bits do not depend on the batch around it.",
    ),
    _triton(
        "attn.select",
        "selection",
        dtype("q").one_of("bfloat16"),
        dtype("weights").one_of(*DTYPES),
        layout("cache").one_of(*INDEX),
        dim("index_dim").one_of(*POWERS),
        dim("index_heads").between(1, 128),
        dim("top_k").between(1, 4096),
        batch_invariant=True,
        notes="Scores of some tokens at a time, then a threshold found bit by bit in registers.",
    ),
    _triton(
        "attn.index_scores",
        "selection",
        dtype("q").one_of("bfloat16"),
        dtype("weights").one_of(*DTYPES),
        layout("cache").one_of(*INDEX),
        dim("index_dim").one_of(*POWERS),
        dim("index_heads").between(1, 128),
        batch_invariant=True,
        capturable=False,
        notes="Its width follows the longest request, which the host knows.",
    ),
    _triton(
        "attn.compress",
        "compression",
        dtype("x").one_of(*DTYPES),
        *STORE,
        notes="Two projections, then one kernel from windows to stored entries; entries are never packed.",
    ),
    _triton(
        "attn.compress_pool",
        "compression",
        dim("head_dim").one_of(*POWERS),
        batch_invariant=True,
        capturable=False,
        notes="An online softmax over a window's tokens; packs entries, whose number the host knows.",
    ),
    _triton(
        "attn.store",
        "compression",
        dtype("values").one_of(*DTYPES),
        *STORE,
        batch_invariant=True,
        notes="Norm, RoPE, Hadamard, quantiser and store in one pass.",
    ),
    _triton(
        "moe.route",
        "experts",
        dim("experts").between(1, 1024),
        dim("top_k").between(1, 16),
        batch_invariant=True,
        notes="All experts of a token in registers, the best taken top_k times.",
    ),
    _triton(
        "moe.dispatch",
        "experts",
        dtype("x").one_of(*DTYPES),
        attribute("activation").one_of(*ACTIVATIONS),
        attribute("experts").one_of(*range(1, 1025)),
        batch_invariant=True,
        notes="A counting sort without atomics; quantised once, stored top_k times; counts of a group visit the host",
    ),
    _triton(
        "moe.experts",
        "experts",
        layout("w13").one_of(*WEIGHTS),
        layout("w2").one_of(*WEIGHTS),
        attribute("activation").one_of(*ACTIVATIONS),
        _multiplies("w13", "w2"),
        notes="Grouped products; clamped SwiGLU, routing weight and quantiser in the first one's epilogue.",
    ),
    _triton(
        "moe.combine",
        "experts",
        dtype("rows").one_of(*DTYPES),
        batch_invariant=True,
        notes="Float32 sums in slot order.",
    ),
    _triton(
        "quant.quantize",
        "matmul",
        dtype("x").one_of(*DTYPES),
        attribute("activation").one_of(*BLOCK_ACTIVATIONS, "int8_token"),
        dim("features").between(1, 65536),
        batch_invariant=True,
        notes="Integer arithmetic on the bits: the same codes on every chip.",
    ),
    _triton(
        "quant.matmul",
        "matmul",
        dtype("x").one_of("bfloat16"),
        layout("weight").one_of(*QUANTISED, "w8a8_int8", "bf16"),
        attribute("activation").one_of(*ACTIVATIONS),
        _multiplies("weight"),
        notes="FP8, block-scaled or int8 units where the chip has them, else exact bfloat16; plain bf16 goes to torch.",
    ),
)
