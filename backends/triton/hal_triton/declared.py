"""The declarations of these kernels, for a backend that Triton compiles for. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hal.constraints import Constraint, Facts, attribute, check, dim, dtype, layout
from hal.kernel import Kernel

__all__ = ["CACHES", "INDEX", "WEIGHTS", "kernels"]

CACHES = ("v4_584", "rows_bf16", "rows_bf16_fp8")
"""Of window and compressed rows: half the bytes of bfloat16, with the values that the checkpoint was trained for."""

INDEX = ("index_mxfp4_68", "index_fp8_132", "index_bf16_mxfp4", "rows_bf16")
"""Of the indexer's rows."""

QUANTISED = ("fp8_block128", "mxfp4", "mxfp8")
"""Weight schemes whose values are read as bfloat16 or multiplied as they are."""

WEIGHTS = (*QUANTISED, "w8a8_int8", "bf16")

BLOCK_ACTIVATIONS = ("e4m3_128", "e4m3_64", "e4m3_32", "e2m1_32")
ACTIVATIONS = ("none", *BLOCK_ACTIVATIONS, "int8_token")

DTYPES = ("bfloat16", "float16", "float32")
"""Of rows that are only read, not multiplied."""

POWERS = (16, 32, 64, 128, 256, 512)


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


SAME_ROWS = check(
    _same_rows,
    says="window and compressed rows both in v4_584, or both in rows of bfloat16",
    yes=({"window": "v4_584", "compressed": "v4_584"},),
    no=({"window": "v4_584", "compressed": "rows_bf16"},),
)


def kernels(
    backend: str,
    *,
    caches: Sequence[str] = CACHES,
    index: Sequence[str] = INDEX,
    weights: Sequence[str] = WEIGHTS,
    experts: Sequence[str] = WEIGHTS,
    suffix: str = "",
    also: Sequence[Constraint] = (),
    capturable: bool = False,
) -> tuple[Kernel, ...]:
    """One kernel per contract (two for `attn.attend`), named `backend.contract` with a suffix.

    Args:
        caches, index, weights: those of the lists above that the chip has a use for.
        experts: weights of experts, likewise.
        also: what every kernel needs besides, such as Triton's compiler for the chip.
        capturable: whether a graph of this device can record launches.
    """

    stored = tuple(dict.fromkeys((*caches, *index, "rows_f32")))
    store = (layout("cache").one_of(*stored), dim("head_dim").one_of(*POWERS))
    attend = (
        dtype("q").one_of("bfloat16"),
        layout("window").one_of(*caches),
        layout("compressed").one_of(*caches),
        *([SAME_ROWS] if "v4_584" in caches else []),
        dim("head_dim").one_of(*POWERS),
    )

    def kernel(
        contract: str, module: str, *constraints: Constraint, notes: str, name: str = "", **flags: Any
    ) -> Kernel:
        name = name or contract.split(".")[1]
        return Kernel(
            id=f"{backend}.{name}{suffix}",
            contract=contract,
            code=f"hal_triton.{module}:{name}",
            constraints=(*also, *constraints),
            notes=notes,
            **{"capturable": capturable, **flags},
        )

    return (
        kernel(
            "attn.attend",
            "attention",
            *attend,
            notes="Rows read from their pages in place; few tokens over long rows are cut into parts and merged.",
        ),
        kernel(
            "attn.attend",
            "attention",
            *attend,
            name="attend_whole",
            batch_invariant=True,
            notes="Never cut: a token's bits do not depend on the batch around it.",
        ),
        kernel(
            "attn.select",
            "selection",
            dtype("q").one_of("bfloat16"),
            dtype("weights").one_of(*DTYPES),
            layout("cache").one_of(*index),
            dim("index_dim").one_of(*POWERS),
            dim("index_heads").between(1, 128),
            dim("top_k").between(1, 4096),
            batch_invariant=True,
            notes="Scores of some tokens at a time, then a threshold found bit by bit in registers.",
        ),
        kernel(
            "attn.index_scores",
            "selection",
            dtype("q").one_of("bfloat16"),
            dtype("weights").one_of(*DTYPES),
            layout("cache").one_of(*index),
            dim("index_dim").one_of(*POWERS),
            dim("index_heads").between(1, 128),
            batch_invariant=True,
            capturable=False,
            notes="Its width follows the longest request, which the host knows.",
        ),
        kernel(
            "attn.compress",
            "compression",
            dtype("x").one_of(*DTYPES),
            *store,
            notes="Two projections, then one kernel from windows to stored entries; entries are never packed.",
        ),
        kernel(
            "attn.compress_pool",
            "compression",
            dim("head_dim").one_of(*POWERS),
            batch_invariant=True,
            capturable=False,
            notes="An online softmax over a window's tokens; packs entries, whose number the host knows.",
        ),
        kernel(
            "attn.store",
            "compression",
            dtype("values").one_of(*DTYPES),
            *store,
            batch_invariant=True,
            notes="Norm, RoPE, Hadamard, quantiser and store in one pass.",
        ),
        kernel(
            "moe.route",
            "experts",
            dim("experts").between(1, 1024),
            dim("top_k").between(1, 16),
            batch_invariant=True,
            notes="All experts of a token in registers, the best taken top_k times.",
        ),
        kernel(
            "moe.dispatch",
            "experts",
            dtype("x").one_of(*DTYPES),
            attribute("activation").one_of(*ACTIVATIONS),
            attribute("experts").one_of(*range(1, 1025)),
            batch_invariant=True,
            notes="A counting sort without atomics; quantised once, stored top_k times; group counts go to the host.",
        ),
        kernel(
            "moe.experts",
            "experts",
            layout("w13").one_of(*experts),
            layout("w2").one_of(*experts),
            attribute("activation").one_of(*ACTIVATIONS),
            _multiplies("w13", "w2"),
            notes="Grouped products; clamped SwiGLU, routing weight and quantiser in the first one's epilogue.",
        ),
        kernel(
            "moe.combine",
            "experts",
            dtype("rows").one_of(*DTYPES),
            batch_invariant=True,
            notes="Float32 sums in slot order.",
        ),
        kernel(
            "quant.quantize",
            "matmul",
            dtype("x").one_of(*DTYPES),
            attribute("activation").one_of(*BLOCK_ACTIVATIONS, "int8_token"),
            dim("features").between(1, 65536),
            batch_invariant=True,
            notes="Integer arithmetic on the bits: the same codes on every chip.",
        ),
        kernel(
            "quant.matmul",
            "matmul",
            dtype("x").one_of("bfloat16"),
            layout("weight").one_of(*weights),
            attribute("activation").one_of(*ACTIVATIONS),
            _multiplies("weight"),
            notes="FP8, block-scaled or int8 units where the chip has them, else bfloat16; plain bf16 goes to torch.",
        ),
        kernel(
            "mhc.pre",
            "mhc",
            dtype("streams").one_of("bfloat16"),
            dim("streams").one_of(4),
            batch_invariant=True,
            notes="Products in parts of the channels, added in order; float32 weights as three bfloat16 parts.",
        ),
        kernel(
            "mhc.post",
            "mhc",
            dtype("streams").one_of(*DTYPES),
            dtype("y").one_of(*DTYPES),
            dim("streams").one_of(2, 4, 8),
            batch_invariant=True,
            notes="Float32 sums, rounded once.",
        ),
    )
