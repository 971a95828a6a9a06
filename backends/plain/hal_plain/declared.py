"""The declarations of these kernels, for a backend that has no operator of its own for a call. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from hal.constraints import Constraint, attribute, dtype, layout
from hal.kernel import Kernel

__all__ = ["kernels"]


def kernels(
    backend: str,
    *,
    dtypes: Sequence[str],
    caches: Sequence[str],
    index: Sequence[str],
    weights: Sequence[str],
    activations: Sequence[str],
) -> list[Kernel]:
    """One kernel per contract, named `backend.contract.torch`.

    Args:
        dtypes: of activations that the device computes with.
        caches, index: layouts of window and compressed rows, and of the indexer's.
        weights, activations: weight schemes and activation quantisers.
    """

    def kernel(name: str, contract: str, module: str, *constraints: Constraint, notes: str) -> Kernel:
        return Kernel(
            id=f"{backend}.{name}.torch",
            contract=contract,
            code=f"hal_plain.{module}:{name}",
            constraints=constraints,
            notes=notes,
        )

    def floats(*arguments: str) -> list[Constraint]:
        return [dtype(argument).one_of(*dtypes) for argument in arguments]

    both = [layout("w13").one_of(*weights), layout("w2").one_of(*weights)]
    activation = attribute("activation").one_of(*activations)
    rows = layout("cache").one_of(*dict.fromkeys((*caches, *index)))
    held = [layout("window").one_of(*caches), layout("compressed").one_of(*caches)]
    quantised = attribute("activation").one_of(*(name for name in activations if name != "none"))
    return [
        kernel("attend", "attn.attend", "attention", *floats("q"), *held, notes="Some queries at a time."),
        kernel("select", "attn.select", "selection", *floats("q", "weights"), rows, notes="All heads, some queries."),
        kernel("index_scores", "attn.index_scores", "selection", *floats("q", "weights"), rows, notes="As select."),
        kernel("compress_pool", "attn.compress_pool", "compression", notes="All windows of a batch at once."),
        kernel("store", "attn.store", "compression", *floats("values"), rows, notes="hal.layouts on the device."),
        kernel("route", "moe.route", "experts", notes="Ties go to the lowest expert."),
        kernel(
            "dispatch",
            "moe.dispatch",
            "experts",
            *floats("x"),
            activation,
            notes="A stable sort by expert. Over a group, counts are read.",
        ),
        kernel(
            "experts",
            "moe.experts",
            "experts",
            *both,
            activation,
            notes="One tile of an expert's rows after the other.",
        ),
        kernel("combine", "moe.combine", "experts", *floats("rows"), notes="Float32 sums in slot order."),
        kernel("quantize", "quant.quantize", "matmul", *floats("x"), quantised, notes="hal.formats on the device."),
        kernel(
            "matmul",
            "quant.matmul",
            "matmul",
            *floats("x"),
            layout("weight").one_of(*weights),
            activation,
            notes="Float32 products with the dequantised weight.",
        ),
    ]
