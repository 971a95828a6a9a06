"""What a DeepSeek-V4 costs before any of it is loaded: weight bytes, cache bytes per request, FLOPs per token.

Counted from the configuration and the byte counts of the real cache layouts, without torch, and compared with
DeepSeek-V3.2 as the DeepSeek-V4 technical report does: at one million tokens 27 % of V3.2's single-token FLOPs and 10 %
of its KV cache for Pro, 10 % and 7 % for Flash.

FLOPs are weighted by the bytes of the operands' format, FP8 being 1: bf16 2, FP8 and int8 1, FP4 0.5. FP4 weights that
meet FP8 activations count as FP8. The report does not state a weighting; this one reproduces its figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, prod
from typing import Protocol

from hal.layouts.sizes import sizes
from hal.models.deepseek_v4.config import CSA_RATIO, DeepseekV4Config
from hal.models.deepseek_v4.tensors import TensorSpec, tensors

BLOCK = 64
"""Rows of one cache page."""

WEIGHTING = {"float64": 8.0, "float32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5}
"""Weight of one FLOP by the format of its operands: their bytes."""

_OPERANDS = {
    "float64": "float64", "float32": "float32", "bf16": "bf16", "fp8_block128": "fp8", "mxfp8": "fp8", "mxfp4": "fp8",
    "hif8": "fp8", "w8a8_int8": "int8", "w4a8_int": "int8",
    "w4a8_int_256": "int8",
    "rows_f64": "float64", "rows_f32": "float32", "index_mxfp4_68": "fp4", "index_fp8_132": "fp8",
    "index_int8_130": "int8",
}  # fmt: skip
"""Format in which weights of a scheme, or rows of a cache layout, are multiplied; bf16 for the layouts not named."""


_STORED = {
    "float64": (8, 1, 1, 0), "float32": (4, 1, 1, 0), "bf16": (2, 1, 1, 0),
    "fp8_block128": (1, 128, 128, 1), "mxfp8": (1, 1, 32, 1), "mxfp4": (0.5, 1, 32, 1), "hif8": (1, 1, 0, 4),
    "w8a8_int8": (1, 1, 0, 4), "w4a8_int": (0.5, 1, 128, 4), "w4a8_int_256": (0.5, 1, 256, 4),
}  # fmt: skip
"""Of a weight scheme: bytes of a value, rows and columns that share a scale (0: all), bytes of a scale."""

_PLAIN = {"float64": "float64", "float32": "float32", "bfloat16": "bf16"}
_EXACT = ("norm.weight", "head.weight", "gate.weight")
"""Weights stored in bfloat16 that a model computes with in float32."""


class Storage(Protocol):
    """Cache layouts and weight schemes by name, and the dtype of the rest: a model's `Numerics`."""

    @property
    def dtype(self) -> str: ...
    @property
    def window(self) -> str: ...
    @property
    def compressed(self) -> str: ...
    @property
    def index(self) -> str: ...
    @property
    def linear(self) -> str: ...
    @property
    def experts(self) -> str: ...


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one decoded token in one part of the model, and the format of their operands."""

    part: str
    macs: float
    format: str

    @property
    def flops(self) -> float:
        """FP8-equivalent FLOPs: two per multiply-accumulate, weighted by `WEIGHTING`."""
        return 2 * self.macs * WEIGHTING[self.format]


@dataclass(frozen=True)
class CacheBytes:
    """Bytes that one request of `context` tokens keeps between steps, all layers together (MTP blocks excluded).

    Attributes:
        per_token: compressed and index rows, as a slope; it is the same at every context.
        rows: the same, of the whole rows there are at this context.
        window: the sliding windows' rows.
        state: the compressors' float32 tails.
        padding: what whole pages of `BLOCK` rows, padded as their layout asks, take on top.
    """

    context: int
    per_token: float
    rows: int
    window: int
    state: int
    padding: int

    @property
    def total(self) -> int:
        """Bytes of data, without the padding of pages."""
        return self.rows + self.window + self.state


def cache_bytes(config: DeepseekV4Config, storage: Storage, context: int) -> CacheBytes:
    """Cache bytes of a request of `context` tokens in the layouts of `storage`.

    Raises:
        UnknownName: there is no such layout.
        ContractError: a layout cannot hold such rows.
    """
    per_token, rows, window, state, padding = 0.0, 0, 0, 0, 0
    for ratio in config.compress_ratios:
        caches = [(storage.window, config.head_dim, 1)]
        if ratio:
            overlap = ratio == CSA_RATIO
            caches.append((storage.compressed, config.head_dim, ratio))
            state += _state_bytes(ratio, overlap, config.head_dim)
            if overlap:
                caches.append((storage.index, config.index_head_dim, ratio))
                state += _state_bytes(ratio, overlap, config.index_head_dim)
        for name, dim, every in caches:
            size = sizes(name, dim, BLOCK, config.qk_rope_head_dim)
            count = min(context, config.sliding_window) if every == 1 else context // every
            data = count * size.row_bytes
            padding += -(-count // BLOCK) * size.page_bytes - data
            if every == 1:
                window += data
            else:
                rows += data
                per_token += size.row_bytes / every
    return CacheBytes(context, per_token, rows, window, state, padding)


def _state_bytes(ratio: int, overlap: bool, head_dim: int) -> int:
    """Float32 values and scores of the tokens that a compressor has not finished with."""
    coff = 1 + overlap
    return (coff * ratio) * (2 * coff * head_dim) * 4


def weight_bytes(config: DeepseekV4Config) -> dict[str, int]:
    """Bytes of a published checkpoint by their storage, as `TensorSpec.storage` names it, MTP included."""
    found: Counter[str] = Counter()
    for spec in tensors(config):
        found[spec.storage(config)] += spec.bytes(config)
    return dict(found.most_common())


def held_bytes(config: DeepseekV4Config, storage: Storage) -> int:
    """Bytes of all weights as a model on the chip holds them, MTP included; what kernels make of them comes on top."""
    return sum(scheme_bytes(_held(spec, storage), spec.shape) for spec in tensors(config))


def scheme_bytes(scheme: str, shape: tuple[int, ...]) -> int:
    """Bytes of codes and scales of a weight [.., outputs, features]."""
    value, rows, columns, scale = _STORED[scheme]
    scales = ceil(shape[-2] / rows) * ceil(shape[-1] / (columns or shape[-1])) if scale else 0
    return ceil(prod(shape) * value) + prod(shape[:-2]) * scales * scale


def _held(spec: TensorSpec, storage: Storage) -> str:
    plain = _PLAIN[storage.dtype]
    exact = "float64" if plain == "float64" else "float32"
    if spec.kind == "expert":
        return storage.experts
    if spec.kind == "linear":
        return plain if spec.name.endswith("wo_a.weight") else storage.linear
    if spec.kind == "ids":
        return "float32"  # as wide as int32
    return plain if spec.kind == "bf16" and not spec.name.endswith(_EXACT) else exact


def parameters(config: DeepseekV4Config, *, mtp: bool = True) -> int:
    """Number of parameters."""
    return sum(prod(spec.shape) for spec in _weights(config, mtp))


def active_parameters(config: DeepseekV4Config) -> int:
    """Parameters that one token meets, MTP and the embedding (a single row of it) excluded."""
    used, experts = config.num_experts_per_tok, config.n_routed_experts
    weights = [spec for spec in _weights(config, mtp=False) if spec.name != "embed.weight"]
    routed = sum(prod(spec.shape) for spec in weights if spec.kind == "expert")
    return sum(prod(spec.shape) for spec in weights if spec.kind != "expert") + routed * used // experts


def _weights(config: DeepseekV4Config, mtp: bool) -> list[TensorSpec]:
    return [spec for spec in tensors(config) if spec.kind != "ids" and (mtp or not spec.name.startswith("mtp."))]


def token_work(config: DeepseekV4Config, storage: Storage, context: int) -> list[Work]:
    """Work of decoding one token behind `context` others, MTP excluded, by part of the model.

    The attention core scores and sums over the window and the entries it may look at; the indexer scores every visible
    entry of its layer; `wo_a` counts in the format that it is stored in.
    """
    hidden, heads, dim, rank = config.hidden_size, config.num_attention_heads, config.head_dim, config.q_lora_rank
    latent, streams, layers = config.o_lora_rank, config.hc_mult, config.num_hidden_layers
    csa = sum(ratio == CSA_RATIO for ratio in config.compress_ratios)
    seen = sum(
        min(context, config.sliding_window) + _entries(ratio, context, config.index_topk)
        for ratio in config.compress_ratios
    )
    index_dim, index_heads = config.index_head_dim, config.index_n_heads
    projections = (
        hidden * rank + rank * heads * dim + hidden * dim + heads * dim * latent + config.o_groups * latent * hidden
    )
    widths = sum(2 * (dim + index_dim) if ratio == CSA_RATIO else dim for ratio in config.compress_ratios if ratio)
    linear, index = _operands(storage.linear), _operands(storage.index)
    met = config.num_experts_per_tok * 3 * hidden * config.moe_intermediate_size
    mixes = (2 + streams) * streams * streams * hidden + (2 + streams) * streams * hidden
    return [
        Work("projections", layers * projections, linear),
        Work("attention", seen * heads * dim * 2, _operands(storage.compressed)),
        Work("compressors", 2 * hidden * widths, "bf16"),
        Work("indexer projections", csa * rank * index_heads * index_dim, linear),
        Work("indexer weights", csa * hidden * index_heads, "bf16"),
        Work("indexer scores", csa * (context // CSA_RATIO) * index_heads * index_dim, index),
        Work("routed experts", layers * met, _operands(storage.experts)),
        Work("shared experts", layers * 3 * hidden * config.moe_intermediate_size, linear),
        Work("gates", layers * hidden * config.n_routed_experts, "bf16"),
        Work("hyper-connections", layers * 2 * mixes, "bf16"),
        Work("head", hidden * config.vocab_size, "bf16"),
    ]


def _entries(ratio: int, context: int, top_k: int) -> int:
    if not ratio:
        return 0
    return min(context // ratio, top_k) if ratio == CSA_RATIO else context // ratio


def _operands(name: str) -> str:
    return _OPERANDS.get(name, "bf16")


def total_flops(work: Iterable[Work]) -> float:
    """FP8-equivalent FLOPs of all parts."""
    return sum(each.flops for each in work)


class V32:
    """DeepSeek-V3.2 as published (its `config.json`; DeepSeek-V3.2 technical report), the figure to compare with."""

    hidden, rank, heads, layers, vocab = 7168, 1536, 128, 61, 129280
    qk_dim, latent_dim, rope_dim = 192, 512, 64
    index_heads, index_dim, top_k = 64, 128, 2048
    dense_layers, dense_inter, inter, experts, experts_per_token = 3, 18432, 2048, 256, 8
    row_bytes = 656 + 132
    """One token in one layer: 512 e4m3 + 4 float32 + 64 bf16, and the indexer's 128 e4m3 + 1 float32."""

    @classmethod
    def token_work(cls, context: int) -> list[Work]:
        """Work of decoding one token behind `context` others, MTP excluded."""
        hidden, heads, latent = cls.hidden, cls.heads, cls.latent_dim
        projections = hidden * cls.rank + cls.rank * heads * cls.qk_dim + hidden * (latent + cls.rope_dim)
        projections += heads * 128 * latent * 2 + heads * 128 * hidden
        core = min(context, cls.top_k) * heads * (2 * latent + cls.rope_dim)
        index = context * cls.index_heads * cls.index_dim
        index += cls.rank * cls.index_heads * cls.index_dim + hidden * cls.index_dim
        sparse = cls.layers - cls.dense_layers
        ffn = 3 * hidden * (cls.dense_layers * cls.dense_inter + sparse * cls.inter * (cls.experts_per_token + 1))
        return [
            Work("projections", cls.layers * projections, "fp8"),
            Work("attention", cls.layers * core, "bf16"),
            Work("indexer", cls.layers * index, "fp8"),
            Work("indexer weights", cls.layers * hidden * cls.index_heads, "bf16"),
            Work("experts", ffn, "fp8"),
            Work("gates", sparse * hidden * cls.experts, "bf16"),
            Work("head", hidden * cls.vocab, "bf16"),
        ]

    @classmethod
    def cache_bytes(cls, context: int) -> int:
        """Cache bytes of a request, in FP8 rows."""
        return cls.layers * context * cls.row_bytes
