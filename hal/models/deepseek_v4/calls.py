"""The operator calls of a whole DeepSeek-V4, without torch: what the model binds and what `hal plan` judges.

One `hal.Call` per distinct use; `uses` says how many blocks share it. Names are `<layer kind>.<use>` or
`linear.<weight>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hal.errors import ConfigError
from hal.models.deepseek_v4.config import CSA_RATIO, DeepseekV4Config
from hal.planning import Call

_WINDOW = ("v4_584", "v4_640", "rows_bf16_fp8", "rows_bf16", "rows_f32", "rows_f64")
_INDEX = ("index_mxfp4_68", "index_fp8_132", "index_bf16_mxfp4", "index_int8_130", "rows_bf16", "rows_f32", "rows_f64")
_ROWS = {"float64": "rows_f64", "float32": "rows_f32", "bfloat16": "rows_bf16"}
_INT8 = "w8a8_int8"
_INT4 = ("w4a8_int_256", "w4a8_int")
_SCHEME = {"float64": "float64", "float32": "float32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Numerics:
    """What is stored and rounded how: dtype of activations, cache layouts, weight schemes, activation quantisers."""

    dtype: str
    window: str
    compressed: str
    index: str
    hadamard: bool
    linear: str
    experts: str
    activation: str
    expert_activation: str

    @property
    def packed(self) -> bool:
        """Whether linear weights stay quantised and go through `quant.matmul`."""
        return self.linear not in _SCHEME.values()

    @property
    def integers(self) -> bool:
        """Whether weights are kept as integers, which no published checkpoint does."""
        return not {_INT8, *_INT4}.isdisjoint((self.linear, self.experts))

    @classmethod
    def on(
        cls,
        config: DeepseekV4Config,
        device_type: str,
        layouts: Sequence[str] | None,
        *,
        simulate: bool | None = None,
        dtype: str | None = None,
        allow: Collection[str] = (),
    ) -> Numerics:
        """The numerics of a checkpoint on a chip.

        Args:
            layouts: as in `published`.
            simulate: the official code's simulated quantisation; by default on where the checkpoint is quantised.
            dtype: of activations; by default float32 on CPUs and bfloat16 elsewhere.
            allow: words of HAL_ALLOW. By "requantize" weights become int8 on a chip that multiplies it better than FP8,
                by "requantize4" FP4 experts become int4 on one that multiplies it better than FP4. Both lose bits.
        """
        dtype = dtype or ("float32" if device_type == "cpu" else "bfloat16")
        simulate = config.quantization is not None if simulate is None else simulate
        if not simulate:
            return cls.exact(dtype)
        made = published = cls.published(config, dtype, layouts)
        if "requantize" in allow and _best(layouts, _INT8, published.linear) == _INT8:
            made = replace(made, linear=_INT8, experts=_INT8, activation="int8_token", expert_activation="int8_token")
        if "requantize4" in allow and published.experts == "mxfp4":
            best = _best(layouts, *_INT4, published.experts)
            made = replace(made, experts=best, expert_activation="int8_token") if best in _INT4 else made
        return made

    @classmethod
    def exact(cls, dtype: str = "float32") -> Numerics:
        """No simulated quantisation: plain rows and weights in the model's dtype. Reproduces transformers."""
        if dtype not in _ROWS:
            raise ConfigError(
                f"a model cannot compute in {dtype!r}", where="dtype", fix=f"use one of {', '.join(_ROWS)}"
            )
        rows, scheme = _ROWS[dtype], _SCHEME[dtype]
        return cls(dtype, rows, rows, rows, False, scheme, scheme, "none", "none")

    @classmethod
    def published(
        cls, config: DeepseekV4Config, dtype: str = "float32", layouts: Sequence[str] | None = None
    ) -> Numerics:
        """The arithmetic of the official inference code for a quantised checkpoint.

        KV rows through e4m3 in blocks of 64, index rows through Hadamard and FP4, FP8 weights and FP4 experts with
        activations through e4m3 in blocks of 128.

        Args:
            layouts: cache layouts and weight schemes that the chip has, best first (its backend's `hal_layouts`); by
            default
                those that every torch device can run.

        Raises:
            ConfigError: the checkpoint is not quantised, or asks for float32 activation scales.
        """
        quantization = config.quantization
        if quantization is None:
            raise ConfigError(
                "simulated quantisation was asked for a checkpoint that is not quantised",
                where="quantization_config",
                fix="pass simulate=False",
            )
        if quantization.scale_fmt is None:
            raise ConfigError(
                "activations with unrounded float32 scales (scale_fmt null) have no quantiser",
                where="quantization_config.scale_fmt",
                fix="pass simulate=False, which dequantises the weights",
            )
        exact = cls.exact(dtype)
        have = ("rows_bf16_fp8", "index_mxfp4_68") if layouts is None else tuple(layouts)
        rows = next((name for name in have if name in _WINDOW), exact.window)
        index = next((name for name in have if name in _INDEX and name not in _WINDOW), exact.index)
        experts = "mxfp4" if quantization.expert_dtype == "fp4" else "fp8_block128"
        return cls(dtype, rows, rows, index, True, "fp8_block128", experts, "e4m3_128", "e4m3_128")


def _best(layouts: Sequence[str] | None, *schemes: str) -> str | None:
    """The scheme that a chip prefers; None: it has none of them."""
    return next((name for name in layouts or () if name in schemes), None)


def calls(
    config: DeepseekV4Config, numerics: Numerics, *, context: int | None = None, tokens: int | None = None
) -> list[Call]:
    """Every operator call of the model, MTP blocks included.

    Args:
        context: most tokens one request may hold (default: the configuration's maximum); bounds the compressed entries.
        tokens: most new tokens in one step (default: `context`).
    """
    context = config.max_position_embeddings if context is None else context
    step = {"tokens": (0, context if tokens is None else tokens)}
    kinds = {config.kind(layer) for layer in config.layers}
    found = [_store(config, numerics, step)]
    for kind, ratio in sorted({(config.kind(layer), config.ratio(layer)) for layer in config.layers}):
        found.append(_attend(config, numerics, kind, ratio, step))
        if kind != "swa":
            found.append(_compress(config, numerics, compress_name(kind, ratio), ratio, step))
    if "csa" in kinds:
        found += [
            _compress(config, numerics, "index.compress", CSA_RATIO, step),
            _select(config, numerics, context, step),
        ]
    found += [
        *_moe(config, numerics, step),
        *_linears(config, numerics, step),
        *_hyper_connections(config, numerics, step),
    ]
    return found


def attend_name(kind: str, ratio: int) -> str:
    """Name of a block's `attn.attend` call."""
    return f"{kind}{ratio if kind == 'hca' else ''}.attend"


def compress_name(kind: str, ratio: int) -> str:
    """Name of a block's `attn.compress` call."""
    return f"{kind}{ratio if kind == 'hca' else ''}.compress"


def uses(config: DeepseekV4Config, *, mtp: bool = True) -> Counter[str]:
    """How many blocks make each call of `calls`; a block that makes a call twice counts twice."""
    counts: Counter[str] = Counter()
    for layer in config.layers if mtp else range(config.num_hidden_layers):
        kind, ratio = config.kind(layer), config.ratio(layer)
        counts.update(["window.store", attend_name(kind, ratio), "moe.ffn", *("mhc.pre", "mhc.post") * 2])
        counts.update(["route.hash" if config.is_hash(layer) else "route.top_k"])
        counts.update(f"linear.{name}" for name in ("wq_a", "wq_b", "wkv", "wo_b", "w1", "w3", "w2"))
        if kind != "swa":
            counts[compress_name(kind, ratio)] += 1
        if kind == "csa":
            counts.update(["index.compress", "index.select", "linear.index_wq_b"])
        if layer >= config.num_hidden_layers:
            counts.update(["linear.e_proj", "linear.h_proj"])
    return counts


def _store(config: DeepseekV4Config, numerics: Numerics, step: dict[str, tuple[int, int]]) -> Call:
    return Call(
        "attn.store",
        name="window.store",
        sizes={"head_dim": config.head_dim},
        ranges={"rows": step["tokens"]},
        dtypes={"values": numerics.dtype},
        layouts={"cache": numerics.window},
        attributes={"hadamard": False, "eps": config.rms_norm_eps},
    )


def _attend(
    config: DeepseekV4Config, numerics: Numerics, kind: str, ratio: int, step: dict[str, tuple[int, int]]
) -> Call:
    sizes = {"heads": config.num_attention_heads, "head_dim": config.head_dim}
    layouts = {"window": numerics.window, "rows": "selected", "lse": "none"}  # rows of attn.select; lse unused
    if kind == "csa":
        sizes["top_k"] = config.index_topk
    if kind != "swa":
        layouts["compressed"] = numerics.compressed
    return Call(
        "attn.attend",
        name=attend_name(kind, ratio),
        sizes=sizes,
        ranges=step,
        dtypes={"q": numerics.dtype},
        layouts=layouts,
        attributes={"scale": config.head_dim**-0.5, "window_size": config.sliding_window, "ratio": ratio},
    )


def _compress(
    config: DeepseekV4Config, numerics: Numerics, name: str, ratio: int, step: dict[str, tuple[int, int]]
) -> Call:
    index = name == "index.compress"
    head_dim = config.index_head_dim if index else config.head_dim
    overlap = ratio == CSA_RATIO
    return Call(
        "attn.compress",
        name=name,
        sizes={"hidden": config.hidden_size, "width": head_dim * (1 + overlap), "head_dim": head_dim, "ratio": ratio},
        ranges=step,
        dtypes={"x": numerics.dtype},
        layouts={"cache": numerics.index if index else numerics.compressed},
        attributes={
            "ratio": ratio,
            "overlap": overlap,
            "hadamard": index and numerics.hadamard,
            "eps": config.rms_norm_eps,
        },
    )


def _select(config: DeepseekV4Config, numerics: Numerics, context: int, step: dict[str, tuple[int, int]]) -> Call:
    heads, dim = config.index_n_heads, config.index_head_dim
    return Call(
        "attn.select",
        name="index.select",
        sizes={"index_heads": heads, "index_dim": dim, "top_k": config.index_topk},
        ranges={**step, "entries": (0, context // CSA_RATIO)},
        dtypes={"q": numerics.dtype, "weights": numerics.dtype},
        layouts={"cache": numerics.index},
        attributes={
            "top_k": config.index_topk,
            "ratio": CSA_RATIO,
            "hadamard": numerics.hadamard,
            "scale": dim**-0.5 * heads**-0.5,
        },
    )


def _moe(config: DeepseekV4Config, numerics: Numerics, step: dict[str, tuple[int, int]]) -> Iterator[Call]:
    experts, top_k, hidden = config.n_routed_experts, config.num_experts_per_tok, config.hidden_size
    routing: dict[str, Any] = {"top_k": top_k, "scoring": config.scoring_func, "scale": config.routed_scaling_factor}
    hashed = config.num_hash_layers > 0
    if hashed:
        sizes = {"experts": experts, "top_k": top_k, "vocab": config.vocab_size}
        yield Call("moe.route", name="route.hash", sizes=sizes, ranges=step, attributes=routing)
    if any(not config.is_hash(layer) for layer in config.layers):
        sizes = {"experts": experts, "top_k": top_k}
        yield Call("moe.route", name="route.top_k", sizes=sizes, ranges=step, attributes=routing)
    yield Call(
        "moe.ffn",
        name="moe.ffn",
        sizes={"hidden": hidden, "top_k": top_k, "inter": config.moe_intermediate_size},
        ranges=step,
        dtypes={"x": numerics.dtype},
        layouts={"w13": numerics.experts, "w2": numerics.experts},
        attributes={"experts": experts, "clamp": config.swiglu_limit, "activation": numerics.expert_activation},
    )


def linear_shapes(config: DeepseekV4Config) -> dict[str, tuple[int, int]]:
    """`[out, in]` of every weight that is multiplied through `quant.matmul` when quantised, by its name in a block."""
    hidden, rank, heads = config.hidden_size, config.q_lora_rank, config.num_attention_heads
    shapes = {
        "wq_a": (rank, hidden),
        "wq_b": (heads * config.head_dim, rank),
        "wkv": (config.head_dim, hidden),
        "wo_b": (hidden, config.o_groups * config.o_lora_rank),
        "w1": (config.moe_intermediate_size, hidden),
        "w3": (config.moe_intermediate_size, hidden),
        "w2": (hidden, config.moe_intermediate_size),
    }
    if CSA_RATIO in config.compress_ratios:
        shapes["index_wq_b"] = (config.index_n_heads * config.index_head_dim, rank)
    if config.num_nextn_predict_layers:
        shapes |= {"e_proj": (hidden, hidden), "h_proj": (hidden, hidden)}
    return shapes


def _linears(config: DeepseekV4Config, numerics: Numerics, step: dict[str, tuple[int, int]]) -> Iterator[Call]:
    if not numerics.packed:
        return
    for name, (outputs, features) in linear_shapes(config).items():
        yield Call(
            "quant.matmul",
            name=f"linear.{name}",
            sizes={"features": features, "outputs": outputs},
            ranges=step,
            dtypes={"x": numerics.dtype},
            layouts={"weight": numerics.linear},
            attributes={"activation": numerics.activation},
        )


def _hyper_connections(
    config: DeepseekV4Config, numerics: Numerics, step: dict[str, tuple[int, int]]
) -> Iterator[Call]:
    n, hidden = config.hc_mult, config.hidden_size
    dtypes = {"streams": numerics.dtype}
    yield Call(
        "mhc.pre",
        name="mhc.pre",
        sizes={"streams": n, "hidden": hidden, "mixes": (2 + n) * n, "features": n * hidden},
        ranges=step,
        dtypes=dtypes,
        attributes={"iterations": config.hc_sinkhorn_iters, "norm_eps": config.rms_norm_eps, "eps": config.hc_eps},
    )
    yield Call(
        "mhc.post",
        name="mhc.post",
        sizes={"streams": n, "hidden": hidden},
        ranges=step,
        dtypes=dtypes | {"y": numerics.dtype},
    )
