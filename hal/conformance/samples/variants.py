"""Samples with one field set to a wanted value: what the edges of a kernel's constraints are tried with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hal.conformance.samples import attention, compression, matmul, mhc
from hal.conformance.samples import experts as moe
from hal.conformance.samples.batches import MIXED, Requests
from hal.conformance.samples.sample import Sample

__all__ = ["LIMITS", "STATIC", "Key", "variant"]

Key = tuple[str, str]
"""Kind and name of a constrained field, such as `("dim", "head_dim")`."""

LIMITS = {"tokens": 512, "rows": 512, "requests": 64, "entries": 128}
"""Largest dynamic sizes that are tried; a static size may be at most 8192."""

STATIC = 8192


@dataclass(frozen=True)
class _Recipe:
    """`make(**parameters)` makes a sample; `fields` says which parameter sets which field."""

    make: Callable[..., Sample]
    fields: Mapping[Key, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def variant(contract: str, wanted: Mapping[Key, Any]) -> Sample | None:
    """A sample of `contract` with the fields `wanted`; None where samples of that contract cannot have them."""
    for recipe in _RECIPES[contract]:
        changes: dict[str, Any] = {}
        for key, value in wanted.items():
            name = recipe.fields.get(key)
            if name is None or changes.setdefault(name, value) != value:
                break
        else:
            return recipe.make(**{**recipe.defaults, **changes})
    return None


def _attend(tokens: int | None = None, **parameters: Any) -> Sample:
    return attention.attend_sample(requests=_requests(tokens), **parameters)


def _select(tokens: int | None = None, **parameters: Any) -> Sample:
    return attention.select_sample(requests=_requests(tokens), **parameters)


def _index_scores(tokens: int | None = None, **parameters: Any) -> Sample:
    return attention.index_scores_sample(requests=_requests(tokens), **parameters)


def _requests(tokens: int | None) -> Requests:
    """Requests of `tokens` new tokens together."""
    if tokens is None:
        return MIXED
    return (
        Requests(f"tokens={tokens}", (tokens - tokens // 3, tokens // 3), (5, 130))
        if tokens
        else Requests("tokens=0", (0, 0), (5, 130))
    )


def _compress(rows: str, head_dim: int | None = None, **parameters: Any) -> Sample:
    index = rows.startswith("index")
    return compression.compress_sample(
        MIXED, 4, True, head_dim or (128 if index else 512), rows, hadamard=index, **parameters
    )


def _store(layout: str, head_dim: int | None = None, **parameters: Any) -> Sample:
    index = layout.startswith("index")
    size = head_dim or (128 if index else 512)
    return compression.store_sample(head_dim=size, layout=layout, hadamard=index, norm=True, **parameters)


def _route(experts: int = moe.EXPERTS, top_k: int = moe.TOP_K, **parameters: Any) -> Sample:
    top_k = min(top_k, experts)
    return moe.route_sample(experts=experts, top_k=top_k, **parameters)


def _keys(kind: str, **names: str) -> dict[Key, str]:
    return {(kind, name): parameter for name, parameter in names.items()}


def _attention(kind: str, ratio: int) -> _Recipe:
    caches = {"window": "rows", "compressed": "rows"} if ratio else {"window": "rows"}
    sizes = {"heads": "heads", "head_dim": "head_dim", "tokens": "tokens"}
    return _Recipe(
        _attend,
        _keys("dtype", q="dtype")
        | _keys("layout", **caches, **({"rows": "holes"} if kind == "csa" else {}))
        | _keys("dim", **sizes, **({"top_k": "top_k"} if kind == "csa" else {}))
        | _keys("attribute", window_size="window"),
        {"kind": kind, "ratio": ratio, "dtype": "bfloat16", "rows": "rows_bf16", "heads": 8},
    )


_ACTIVATION = _keys("attribute", activation="activation")
_RECIPES: Mapping[str, tuple[_Recipe, ...]] = {
    "attn.attend": (_attention("csa", 4), _attention("hca", 128), _attention("swa", 0)),
    "attn.select": (
        _Recipe(
            _select,
            _keys("dtype", q="dtype", weights="dtype")
            | _keys("layout", cache="rows")
            | _keys("dim", index_heads="heads", index_dim="dim", top_k="top_k", tokens="tokens"),
            {"dtype": "bfloat16", "rows": "rows_bf16"},
        ),
    ),
    "attn.index_scores": (
        _Recipe(
            _index_scores,
            _keys("dtype", q="dtype", weights="dtype")
            | _keys("layout", cache="rows")
            | _keys("dim", index_heads="heads", index_dim="dim", tokens="tokens"),
            {"dtype": "bfloat16", "rows": "rows_bf16"},
        ),
    ),
    "attn.compress": (
        _Recipe(
            _compress,
            _keys("dtype", x="dtype") | _keys("layout", cache="rows") | _keys("dim", head_dim="head_dim"),
            {"rows": "rows_bf16", "dtype": "bfloat16"},
        ),
    ),
    "attn.compress_pool": (
        _Recipe(
            compression.pool_sample,
            _keys("dim", head_dim="head_dim"),
            {"requests": MIXED, "ratio": 4, "overlap": True, "head_dim": 512},
        ),
    ),
    "attn.store": (
        _Recipe(
            _store,
            _keys("dtype", values="dtype")
            | _keys("layout", cache="layout")
            | _keys("dim", head_dim="head_dim", rows="rows"),
            {"rows": 40, "layout": "rows_bf16", "dtype": "bfloat16"},
        ),
    ),
    "moe.route": (
        _Recipe(
            _route,
            _keys("dim", experts="experts", tokens="tokens", top_k="top_k")
            | _keys("attribute", scoring="scoring", top_k="top_k"),
            {"tokens": 33, "scoring": "sqrtsoftplus", "kind": "bias"},
        ),
    ),
    "moe.dispatch": (
        _Recipe(
            moe.dispatch_sample,
            _keys("dtype", x="dtype") | _keys("dim", tokens="tokens") | _ACTIVATION,
            {"tokens": 33, "activation": "e4m3_128", "routing": "holes"},
        ),
    ),
    "moe.experts": (
        _Recipe(
            moe.experts_sample,
            _keys("layout", w13="scheme", w2="scheme") | _ACTIVATION,
            {"tokens": 33, "scheme": "bf16", "activation": "none", "routing": "spread"},
        ),
    ),
    "moe.combine": (
        _Recipe(
            moe.combine_sample,
            _keys("dtype", rows="dtype") | _keys("dim", tokens="tokens"),
            {"tokens": 33, "routing": "holes", "residual": True},
        ),
    ),
    "moe.ffn": (
        _Recipe(
            moe.ffn_sample,
            _keys("dtype", x="dtype")
            | _keys("layout", w13="scheme", w2="scheme")
            | _keys("dim", tokens="tokens")
            | _keys("attribute", clamp="clamp")
            | _ACTIVATION,
            {"tokens": 33, "scheme": "bf16", "activation": "none", "routing": "holes"},
        ),
    ),
    "quant.quantize": (
        _Recipe(
            matmul.quantize_sample,
            _keys("dtype", x="dtype") | _keys("dim", tokens="tokens", features="features") | _ACTIVATION,
            {"tokens": 7, "features": 256, "activation": "e4m3_128", "dtype": "bfloat16"},
        ),
    ),
    "quant.matmul": (
        _Recipe(
            matmul.matmul_sample,
            _keys("dtype", x="dtype")
            | _keys("layout", weight="scheme")
            | _keys("dim", tokens="tokens", features="features", outputs="outputs")
            | _ACTIVATION,
            {
                "tokens": 7,
                "features": 256,
                "outputs": 384,
                "scheme": "bf16",
                "activation": "none",
                "dtype": "bfloat16",
            },
        ),
    ),
    "mhc.pre": (
        _Recipe(
            mhc.pre_sample,
            _keys("dtype", streams="dtype")
            | _keys("dim", tokens="tokens", hidden="hidden", streams="streams")
            | _keys("attribute", iterations="iterations"),
            {"tokens": 7, "hidden": 256, "dtype": "bfloat16"},
        ),
    ),
    "mhc.post": (
        _Recipe(
            mhc.post_sample,
            _keys("dtype", streams="dtype", y="dtype")
            | _keys("dim", tokens="tokens", hidden="hidden", streams="streams"),
            {"tokens": 7, "hidden": 256, "dtype": "bfloat16"},
        ),
    ),
}
