"""What this backend's kernels can do, best first."""

from __future__ import annotations

from hal.constraints import Constraint, attribute, dtype, layout
from hal.kernel import Kernel
from hal.target import Target
from hal_mlu.layouts import ACTIVATIONS, CACHES, DTYPES, INDEX, WEIGHTS

__all__ = ["kernels"]


def kernels(target: Target) -> list[Kernel]:
    """Kernels for a card: adapters onto torch_mlu_ops first, plain torch behind them."""
    dtypes = tuple(name for name in DTYPES if name != "bfloat16" or "bf16_mma" in target.features)
    return list(_plain(dtypes))


def _plain(dtypes: tuple[str, ...]) -> tuple[Kernel, ...]:
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
    caches = tuple(dict.fromkeys((*CACHES, *INDEX)))
    index = layout("cache").one_of(*caches)
    return (
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
    )
