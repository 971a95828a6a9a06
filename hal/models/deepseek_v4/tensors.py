"""Every tensor of a DeepSeek-V4 checkpoint under its official name: shape and storage kind, from the configuration
alone.

The one list that the reader checks a file against, the writer follows, and weight bytes are counted from; no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from hal.models.deepseek_v4.config import DeepseekV4Config

FP8_BLOCK = 128
FP4_BLOCK = 32


@dataclass(frozen=True)
class TensorSpec:
    """One weight: its official name, its logical shape `[out, in]`, and how a published checkpoint stores it.

    `kind` is `linear` (FP8 in 128x128 blocks when quantised), `expert` (a routed expert: FP4 in blocks of 32, or FP8),
    `bf16`, `float32`, or `ids` (int32 expert ids).
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    def storage(self, config: DeepseekV4Config) -> str:
        """`fp8`, `fp4`, `bf16`, `float32` or `int32` in a checkpoint of this configuration."""
        if self.kind in ("linear", "expert"):
            quantization = config.quantization
            if quantization is None:
                return "bf16"
            return quantization.expert_dtype if self.kind == "expert" else "fp8"
        return "int32" if self.kind == "ids" else self.kind

    @property
    def scale_name(self) -> str:
        """Official name of the scale tensor of a quantised weight."""
        return self.name.removesuffix(".weight") + ".scale"

    def scale_shape(self, storage: str) -> tuple[int, int]:
        """Shape of the scale tensor: one value per 128x128 block (`fp8`) or per 32 inputs (`fp4`)."""
        rows, columns = self.shape
        if storage == "fp4":
            return rows, ceil(columns / FP4_BLOCK)
        return ceil(rows / FP8_BLOCK), ceil(columns / FP8_BLOCK)

    def bytes(self, config: DeepseekV4Config) -> int:
        """Bytes in a published checkpoint, one-byte scales included."""
        storage = self.storage(config)
        count = prod(self.shape)
        if storage == "fp4":
            return ceil(count / 2) + prod(self.scale_shape(storage))
        if storage == "fp8":
            return count + prod(self.scale_shape(storage))
        return count * (2 if storage == "bf16" else 4)


def tensors(config: DeepseekV4Config) -> Iterator[TensorSpec]:
    """All tensors in the order of the model: embedding, blocks, final norm and head, then the MTP blocks."""
    hidden, streams, vocab = config.hidden_size, config.hc_mult, config.vocab_size
    yield TensorSpec("embed.weight", (vocab, hidden), "bf16")
    for layer in range(config.num_hidden_layers):
        yield from _block(config, f"layers.{layer}.", layer)
    yield from _hyper_head("", hidden, streams)
    yield TensorSpec("norm.weight", (hidden,), "bf16")
    yield TensorSpec("head.weight", (vocab, hidden), "bf16")
    for index in range(config.num_nextn_predict_layers):
        prefix = f"mtp.{index}."
        yield from _block(config, prefix, config.num_hidden_layers + index)
        yield from _hyper_head(prefix, hidden, streams)
        for name in ("e_proj", "h_proj"):
            yield TensorSpec(f"{prefix}{name}.weight", (hidden, hidden), "linear")
        for name in ("enorm", "hnorm", "norm"):
            yield TensorSpec(f"{prefix}{name}.weight", (hidden,), "bf16")


def block_prefix(config: DeepseekV4Config, layer: int) -> str:
    """Official name prefix of a block: `layers.N.`, or `mtp.N.` behind the last layer."""
    main = config.num_hidden_layers
    return f"layers.{layer}." if layer < main else f"mtp.{layer - main}."


def _hyper_head(prefix: str, hidden: int, streams: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}hc_head_fn", (streams, streams * hidden), "float32")
    yield TensorSpec(f"{prefix}hc_head_base", (streams,), "float32")
    yield TensorSpec(f"{prefix}hc_head_scale", (1,), "float32")


def _block(config: DeepseekV4Config, prefix: str, layer: int) -> Iterator[TensorSpec]:
    hidden, streams = config.hidden_size, config.hc_mult
    mixes = (2 + streams) * streams
    for half in ("attn", "ffn"):
        yield TensorSpec(f"{prefix}hc_{half}_fn", (mixes, streams * hidden), "float32")
        yield TensorSpec(f"{prefix}hc_{half}_base", (mixes,), "float32")
        yield TensorSpec(f"{prefix}hc_{half}_scale", (3,), "float32")
        yield TensorSpec(f"{prefix}{half}_norm.weight", (hidden,), "bf16")
    yield from _attention(config, f"{prefix}attn.", layer)
    yield from _moe(config, f"{prefix}ffn.", layer)


def _attention(config: DeepseekV4Config, prefix: str, layer: int) -> Iterator[TensorSpec]:
    hidden, heads, head_dim, rank = config.hidden_size, config.num_attention_heads, config.head_dim, config.q_lora_rank
    latent = config.o_groups * config.o_lora_rank
    yield TensorSpec(f"{prefix}attn_sink", (heads,), "float32")
    yield TensorSpec(f"{prefix}wq_a.weight", (rank, hidden), "linear")
    yield TensorSpec(f"{prefix}q_norm.weight", (rank,), "bf16")
    yield TensorSpec(f"{prefix}wq_b.weight", (heads * head_dim, rank), "linear")
    yield TensorSpec(f"{prefix}wkv.weight", (head_dim, hidden), "linear")
    yield TensorSpec(f"{prefix}kv_norm.weight", (head_dim,), "bf16")
    yield TensorSpec(f"{prefix}wo_a.weight", (latent, heads * head_dim // config.o_groups), "linear")
    yield TensorSpec(f"{prefix}wo_b.weight", (hidden, latent), "linear")
    kind, ratio = config.kind(layer), config.ratio(layer)
    if kind != "swa":
        yield from _compressor(f"{prefix}compressor.", hidden, head_dim, ratio, overlap=kind == "csa")
    if kind == "csa":
        index_heads, index_dim = config.index_n_heads, config.index_head_dim
        yield TensorSpec(f"{prefix}indexer.wq_b.weight", (index_heads * index_dim, rank), "linear")
        yield TensorSpec(f"{prefix}indexer.weights_proj.weight", (index_heads, hidden), "bf16")
        yield from _compressor(f"{prefix}indexer.compressor.", hidden, index_dim, ratio, overlap=True)


def _compressor(prefix: str, hidden: int, head_dim: int, ratio: int, *, overlap: bool) -> Iterator[TensorSpec]:
    width = head_dim * (2 if overlap else 1)
    yield TensorSpec(f"{prefix}wkv.weight", (width, hidden), "bf16")
    yield TensorSpec(f"{prefix}wgate.weight", (width, hidden), "bf16")
    yield TensorSpec(f"{prefix}ape", (ratio, width), "float32")
    yield TensorSpec(f"{prefix}norm.weight", (head_dim,), "bf16")


def _moe(config: DeepseekV4Config, prefix: str, layer: int) -> Iterator[TensorSpec]:
    hidden, experts = config.hidden_size, config.n_routed_experts
    yield TensorSpec(f"{prefix}gate.weight", (experts, hidden), "bf16")
    if config.is_hash(layer):
        yield TensorSpec(f"{prefix}gate.tid2eid", (config.vocab_size, config.num_experts_per_tok), "ids")
    else:
        yield TensorSpec(f"{prefix}gate.bias", (experts,), "float32")
    for name, shape in expert_shapes(config).items():
        yield TensorSpec(f"{prefix}shared_experts.{name}.weight", shape, "linear")
    for expert in range(experts):
        for name, shape in expert_shapes(config).items():
            yield TensorSpec(f"{prefix}experts.{expert}.{name}.weight", shape, "expert")


def expert_shapes(config: DeepseekV4Config) -> dict[str, tuple[int, int]]:
    """Shapes of one expert's three matrices, `[out, in]`: gate `w1`, up `w3`, down `w2`."""
    hidden, inter = config.hidden_size, config.moe_intermediate_size
    return {"w1": (inter, hidden), "w3": (inter, hidden), "w2": (hidden, inter)}
