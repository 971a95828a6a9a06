"""What this backend's kernels can do. None needs a feature of the CPU: torch brings its own vector code."""

from __future__ import annotations

from hal.constraints import Constraint, attribute, dtype, layout
from hal.kernel import Kernel
from hal_cpu.layouts import ACTIVATIONS, CACHES, DTYPES, INDEX, WEIGHTS

_MODULES = {
    "attn.attend": "attention",
    "attn.select": "selection",
    "attn.index_scores": "selection",
    "attn.compress": "compression",
    "attn.compress_pool": "compression",
    "attn.store": "compression",
    "moe.route": "experts",
    "moe.dispatch": "experts",
    "moe.experts": "experts",
    "moe.combine": "experts",
    "moe.ffn": "experts",
    "quant.quantize": "matmul",
    "quant.matmul": "matmul",
}


def _kernel(contract: str, *constraints: Constraint, notes: str) -> Kernel:
    name = contract.split(".")[1]
    return Kernel(
        id=f"cpu.{name}",
        contract=contract,
        code=f"hal_cpu.{_MODULES[contract]}:{name}",
        constraints=constraints,
        notes=notes,
    )


def _float(*arguments: str) -> list[Constraint]:
    return [dtype(argument).one_of(*DTYPES) for argument in arguments]


def _activation() -> Constraint:
    return attribute("activation").one_of(*ACTIVATIONS)


KERNELS = (
    _kernel(
        "attn.attend",
        *_float("q"),
        layout("window").one_of(*CACHES),
        layout("compressed").one_of(*CACHES),
        notes="Blocks of queries; a few listed rows per query are gathered, many are one product with a mask.",
    ),
    _kernel(
        "attn.select",
        *_float("q", "weights"),
        layout("cache").one_of(*INDEX, *CACHES),
        notes="Blocks of queries and keys; nothing is scored while every visible entry is chosen.",
    ),
    _kernel(
        "attn.index_scores",
        *_float("q", "weights"),
        layout("cache").one_of(*INDEX, *CACHES),
        notes="As attn.select.",
    ),
    _kernel(
        "attn.compress",
        *_float("x"),
        layout("cache").one_of(*CACHES, *INDEX),
        notes="Float32 projections; pieces of 4096 tokens.",
    ),
    _kernel("attn.compress_pool", notes="All entries of a batch at once."),
    _kernel("attn.store", *_float("values"), layout("cache").one_of(*CACHES, *INDEX), notes="Pieces of 4096 rows."),
    _kernel(
        "moe.ffn",
        *_float("x"),
        layout("w13").one_of(*WEIGHTS),
        layout("w2").one_of(*WEIGHTS),
        _activation(),
        notes="One expert after the other; dequantised weights are kept within a bound on memory.",
    ),
    _kernel("moe.route", notes="Ties go to the lowest expert."),
    _kernel("moe.dispatch", *_float("x"), _activation(), notes="A stable sort by expert; exchanges over any group."),
    _kernel(
        "moe.experts", layout("w13").one_of(*WEIGHTS), layout("w2").one_of(*WEIGHTS), _activation(), notes="As moe.ffn."
    ),
    _kernel("moe.combine", *_float("rows"), notes="Float32 sums in slot order."),
    _kernel("quant.quantize", *_float("x"), attribute("activation").one_of(*ACTIVATIONS[1:]), notes="hal.formats."),
    _kernel(
        "quant.matmul",
        *_float("x"),
        layout("weight").one_of(*WEIGHTS),
        _activation(),
        notes="Float32 products with dequantised weights, kept within a bound on memory.",
    ),
)
