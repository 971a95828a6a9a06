"""Declarations: what each kernel serves. The conformance suite makes its cases from these lines."""

from __future__ import annotations

from hal.constraints import Constraint, attribute, dtype, layout
from hal.kernel import Kernel
from hal.target import Target
from hal_jax.layouts import ACTIVATIONS, CACHES, DTYPES, INDEX, WEIGHTS

_STORED = tuple(dict.fromkeys((*CACHES, *INDEX)))
_KEYS = tuple(dict.fromkeys((*INDEX, *CACHES)))


def _floats(*arguments: str) -> list[Constraint]:
    return [dtype(argument).one_of(*DTYPES) for argument in arguments]


def _weights(*arguments: str) -> list[Constraint]:
    return [layout(argument).one_of(*WEIGHTS) for argument in arguments]


_ACTIVATION = attribute("activation").one_of(*ACTIVATIONS)

_DECLARED: dict[str, tuple[str, list[Constraint], str]] = {
    "attn.attend": (
        "attention",
        [*_floats("q"), layout("window").one_of(*CACHES), layout("compressed").one_of(*CACHES)],
        "Tiles of 16 queries; rows are gathered and decoded in pieces whose softmaxes merge.",
    ),
    "attn.select": (
        "selection",
        [*_floats("q", "weights"), layout("cache").one_of(*_KEYS)],
        "Scores of a tile of queries, then lax.top_k.",
    ),
    "attn.index_scores": (
        "selection",
        [*_floats("q", "weights"), layout("cache").one_of(*_KEYS)],
        "One head at a time.",
    ),
    "attn.compress": (
        "compression",
        [*_floats("x"), layout("cache").one_of(*_STORED)],
        "Codes in XLA, written into pages and state by torch.",
    ),
    "attn.compress_pool": ("compression", [], "Entries in pieces of 64; torch writes the state."),
    "attn.store": (
        "compression",
        [*_floats("values"), layout("cache").one_of(*_STORED)],
        "Codes in XLA, written into pages by torch.",
    ),
    "moe.route": ("experts", [], "lax.top_k, ties to the lowest expert."),
    "moe.dispatch": ("experts", [*_floats("x"), _ACTIVATION], "A stable sort; over a group by hal's exchange."),
    "moe.experts": ("experts", [*_weights("w13", "w2"), _ACTIVATION], "Tiles of up to 64 rows of one expert."),
    "moe.combine": ("experts", _floats("rows"), "Float32 sums in slot order."),
    "moe.ffn": ("experts", [*_floats("x"), *_weights("w13", "w2"), _ACTIVATION], "Dispatch, experts, combine."),
    "quant.quantize": (
        "matmul",
        [*_floats("x"), attribute("activation").one_of(*ACTIVATIONS[1:])],
        "Own rounding, exact to the bit.",
    ),
    "quant.matmul": (
        "matmul",
        [*_floats("x"), *_weights("weight"), _ACTIVATION],
        "Float32 products; weights are decoded on the way.",
    ),
    "mhc.pre": ("mhc", _floats("streams"), "Float32 mixes; Sinkhorn-Knopp in a loop."),
    "mhc.post": ("mhc", _floats("y", "streams"), "Float32 sums, rounded once."),
}


def kernels(target: Target) -> list[Kernel]:
    """Kernels for a platform: `jax` is this machine's processor; on `jax:tpu` and `jax:gpu` Pallas helps."""
    _, _, platform = target.name.partition(":")
    found = []
    for contract, (module, constraints, notes) in _DECLARED.items():
        name = contract.split(".")[1]
        if platform and contract == "moe.ffn":  # a composite of the others
            continue
        code = f"hal_jax.pallas.placed:{platform}_{name}" if platform else f"hal_jax.{module}:{name}"
        label = f"jax.{name}.{platform}" if platform else f"jax.{name}"
        found.append(Kernel(label, contract, code, tuple(constraints), host_sync=True, notes=notes))
    return found
