"""DeepSeek-V4's configuration: one frozen record that every published spelling is read into (`config_reader.load`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hal.errors import ConfigError

CSA_RATIO = 4
"""The compression ratio that makes a layer Compressed Sparse Attention: overlapping windows and an indexer."""


@dataclass(frozen=True)
class Quantization:
    """How weights are quantised: FP8 e4m3 in 128x128 blocks, routed experts in FP4 (1x32 blocks) or FP8."""

    expert_dtype: str
    scale_fmt: str | None = "ue8m0"


@dataclass(frozen=True)
class DeepseekV4Config:
    """Sizes and constants of one DeepSeek-V4, under the names of the official `config.json`.

    `compress_ratios` has one entry per layer, MTP excluded: 0 is sliding-window only, 4 is CSA, anything larger is HCA.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    compress_ratios: tuple[int, ...]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    num_hash_layers: int
    sliding_window: int = 128
    scoring_func: str = "sqrtsoftplus"
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_factor: float = 16.0
    rope_original_length: int = 65536
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    max_position_embeddings: int = 1048576
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = 0
    eos_token_ids: tuple[int, ...] = (1,)
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            floor = _AT_LEAST.get(name)
            if floor is not None and not value >= floor:
                raise field_error(name, f"is {value!r}, it must be at least {floor}")
        layers, ratios = self.num_hidden_layers, self.compress_ratios
        _require(len(ratios) == layers, "compress_ratios", f"has {len(ratios)} entries for {layers} layers")
        odd = [ratio for ratio in ratios if ratio != 0 and ratio < CSA_RATIO]
        _require(not odd, "compress_ratios", f"contains {odd}; a layer's ratio is 0 (window), 4 (CSA) or larger (HCA)")
        _require(self.num_hash_layers <= layers, "num_hash_layers", f"is {self.num_hash_layers} of {layers} layers")
        _require(
            self.num_experts_per_tok <= self.n_routed_experts,
            "num_experts_per_tok",
            f"is {self.num_experts_per_tok}, more than the {self.n_routed_experts} routed experts",
        )
        _require(
            self.num_attention_heads % self.o_groups == 0,
            "o_groups",
            f"is {self.o_groups}, which does not divide the {self.num_attention_heads} heads",
        )
        rope = self.qk_rope_head_dim
        _require(
            rope % 2 == 0 and rope <= min(self.head_dim, self.index_head_dim),
            "qk_rope_head_dim",
            f"is {rope}; it must be even and at most head_dim {self.head_dim} and index_head_dim {self.index_head_dim}",
        )
        _require(
            self.index_head_dim & (self.index_head_dim - 1) == 0,
            "index_head_dim",
            f"is {self.index_head_dim}; the indexer's Hadamard transform needs a power of two",
        )
        _require(
            self.scoring_func in ("sqrtsoftplus", "sigmoid", "softmax"),
            "scoring_func",
            f"is {self.scoring_func!r}, not sqrtsoftplus, sigmoid or softmax",
        )

    @property
    def layers(self) -> range:
        """Ids of all blocks: the model's, then the MTP blocks."""
        return range(self.num_hidden_layers + self.num_nextn_predict_layers)

    def ratio(self, layer: int) -> int:
        """Compression ratio of a block; MTP blocks are sliding-window."""
        return self.compress_ratios[layer] if layer < self.num_hidden_layers else 0

    def kind(self, layer: int) -> str:
        """`swa` (sliding window), `csa` (ratio 4, indexer) or `hca` (heavily compressed)."""
        ratio = self.ratio(layer)
        return "swa" if ratio == 0 else "csa" if ratio == CSA_RATIO else "hca"

    def is_hash(self, layer: int) -> bool:
        """Whether a block routes by token id."""
        return layer < self.num_hash_layers

    def to_dict(self) -> dict[str, Any]:
        """The official `config.json` form; `parse` reads it back to an equal record."""
        fields = asdict(self)
        for name in _RENAMED:
            del fields[name]
        fields["compress_ratios"] = [self.ratio(layer) for layer in self.layers]
        eos = list(self.eos_token_ids)
        official = {
            "architectures": ["DeepseekV4ForCausalLM"],
            "model_type": "deepseek_v4",
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "n_shared_experts": 1,
            "num_key_value_heads": 1,
            "hidden_act": "silu",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "rope_scaling": {
                "type": "yarn",
                "factor": self.rope_factor,
                "beta_fast": self.rope_beta_fast,
                "beta_slow": self.rope_beta_slow,
                "original_max_position_embeddings": self.rope_original_length,
            },
        }
        if self.quantization is not None:
            official["expert_dtype"] = self.quantization.expert_dtype
            official["quantization_config"] = {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "scale_fmt": self.quantization.scale_fmt,
                "weight_block_size": [128, 128],
            }
        return {**official, **fields}


_RENAMED = (
    "rope_factor", "rope_original_length", "rope_beta_fast", "rope_beta_slow", "eos_token_ids", "quantization",
)  # fmt: skip
"""Fields that the official file spells or nests differently."""

_AT_LEAST: dict[str, float] = {
    **dict.fromkeys(("num_nextn_predict_layers", "num_hash_layers", "hc_eps", "rms_norm_eps"), 0),
    **dict.fromkeys(
        (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "qk_rope_head_dim",
            "q_lora_rank", "o_groups", "o_lora_rank", "index_n_heads", "index_head_dim", "index_topk", "sliding_window",
            "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "hc_mult", "hc_sinkhorn_iters",
            "max_position_embeddings", "rope_factor", "rope_original_length",
        ),
        1,
    ),
}  # fmt: skip


def field_error(field: str, problem: str, fix: str = "correct that field of the configuration") -> ConfigError:
    """The error for one field of a configuration."""
    return ConfigError(f"`{field}` {problem}", where="DeepSeek-V4 configuration", fix=fix)


def _require(holds: bool, field: str, problem: str) -> None:
    if not holds:
        raise field_error(field, problem)
