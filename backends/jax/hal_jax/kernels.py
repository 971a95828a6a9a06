"""What each kernel serves. The conformance suite makes its cases from these lines."""

from __future__ import annotations

from typing import Any

from hal.constraints import Constraint, attribute, dtype, layout
from hal.kernel import Kernel
from hal_jax.layouts import ACTIVATIONS, CACHES, DTYPES, INDEX, WEIGHTS

STORED = tuple(dict.fromkeys((*CACHES, *INDEX)))


def _kernel(contract: str, module: str, *constraints: Constraint, notes: str, **flags: Any) -> Kernel:
    name = contract.split(".")[1]
    code = f"hal_jax.{module}:{name}"
    return Kernel(f"jax.{name}", contract, code, constraints, host_sync=True, notes=notes, **flags)


ACTIVATION = attribute("activation").one_of(*ACTIVATIONS)

KERNELS = (
    _kernel(
        "attn.attend",
        "attention",
        dtype("q").one_of(*DTYPES),
        layout("window").one_of(*CACHES),
        layout("compressed").one_of(*CACHES),
        notes="Rows of 16 tokens at a time; a prefix is decoded once per request.",
    ),
    _kernel(
        "attn.index_scores",
        "selection",
        dtype("q").one_of(*DTYPES),
        dtype("weights").one_of(*DTYPES),
        layout("cache").one_of(*INDEX),
        notes="A request's entries are decoded once.",
    ),
    _kernel("attn.compress_pool", "compression", notes="All windows at once; the state changes in torch."),
    _kernel(
        "attn.store",
        "compression",
        dtype("values").one_of(*DTYPES),
        layout("cache").one_of(*STORED),
        notes="Norm, RoPE, Hadamard and quantiser in one program; bytes are written in torch.",
    ),
    _kernel("moe.route", "experts", notes="A stable sort per token."),
    _kernel(
        "moe.dispatch",
        "experts",
        dtype("x").one_of(*DTYPES),
        ACTIVATION,
        notes="Sorted by expert, quantised once; over a group rows travel in torch.",
    ),
    _kernel(
        "moe.experts",
        "experts",
        layout("w13").one_of(*WEIGHTS),
        layout("w2").one_of(*WEIGHTS),
        ACTIVATION,
        notes="A scan over the experts that have rows.",
    ),
    _kernel("moe.combine", "experts", dtype("rows").one_of(*DTYPES), notes="Float32 sums in slot order."),
    _kernel(
        "quant.quantize",
        "matmul",
        dtype("x").one_of(*DTYPES),
        attribute("activation").one_of(*ACTIVATIONS[1:]),
        notes="Integer arithmetic on the bits.",
    ),
    _kernel(
        "quant.matmul",
        "matmul",
        dtype("x").one_of(*DTYPES),
        layout("weight").one_of(*WEIGHTS),
        ACTIVATION,
        notes="Dequantised, multiplied in float32.",
    ),
)
