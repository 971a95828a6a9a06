"""Shared by the model's tests: random configurations, random weights, and the same model in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import strategies as st
from transformers import logging

from hal.models.deepseek_v4 import DeepseekV4, DeepseekV4Config
from hal.models.deepseek_v4.names import official_name

logging.set_verbosity_error()  # warns about every drawn YaRN factor

_LAYER_TYPES = {"swa": "sliding_attention", "csa": "compressed_sparse_attention", "hca": "heavily_compressed_attention"}


def tiny(**changes: Any) -> DeepseekV4Config:
    """A small model with every layer kind and both routings."""
    fields: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "head_dim": 32,
        "qk_rope_head_dim": 8,
        "q_lora_rank": 24,
        "o_groups": 2,
        "o_lora_rank": 16,
        "compress_ratios": (0, 4, 16, 4),
        "index_n_heads": 16,
        "index_head_dim": 16,
        "index_topk": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "num_hash_layers": 1,
        "sliding_window": 16,
        "num_nextn_predict_layers": 1,
        "eos_token_ids": (),
    }
    return DeepseekV4Config(**{**fields, **changes})


@st.composite
def configurations(draw: st.DrawFn) -> DeepseekV4Config:
    """Random small models with every layer kind in some order; 16 or more index heads keep scores from tying."""
    hca = draw(st.sampled_from((8, 16, 128)))
    extra = draw(st.lists(st.sampled_from((0, 4, hca)), max_size=2))
    ratios = draw(st.permutations([0, 4, hca, *extra]))
    groups = draw(st.sampled_from((1, 2)))
    rope = draw(st.sampled_from((4, 8, 16)))
    experts = draw(st.integers(3, 8))
    return tiny(
        vocab_size=draw(st.integers(50, 100)),
        hidden_size=draw(st.sampled_from((24, 40, 64))),
        num_hidden_layers=len(ratios),
        num_attention_heads=groups * draw(st.integers(1, 4)),
        head_dim=draw(st.sampled_from((16, 24, 40))),
        qk_rope_head_dim=rope,
        q_lora_rank=draw(st.integers(8, 32)),
        o_groups=groups,
        o_lora_rank=draw(st.integers(4, 16)),
        compress_ratios=tuple(ratios),
        index_n_heads=draw(st.integers(16, 20)),
        index_head_dim=draw(st.sampled_from((16, 32))),
        index_topk=draw(st.integers(1, 9)),
        moe_intermediate_size=draw(st.integers(8, 40)),
        n_routed_experts=experts,
        num_experts_per_tok=draw(st.integers(1, min(4, experts))),
        num_hash_layers=draw(st.integers(0, 2)),
        sliding_window=draw(st.sampled_from((4, 8, 13, 32))),
        scoring_func=draw(st.sampled_from(("sqrtsoftplus", "sigmoid"))),
        routed_scaling_factor=draw(st.sampled_from((1.0, 1.5, 2.5))),
        swiglu_limit=draw(st.sampled_from((0.5, 2.0, 10.0))),
        hc_mult=draw(st.integers(1, 4)),
        hc_sinkhorn_iters=draw(st.sampled_from((1, 3, 20))),
        rope_factor=draw(st.sampled_from((1.0, 4.0, 16.0))),
        rope_original_length=draw(st.sampled_from((64, 4096, 65536))),
        num_nextn_predict_layers=0,
    )


def random_tensors(config: DeepseekV4Config, seed: int) -> dict[str, torch.Tensor]:
    """Weights that make every term matter: activations of order one; sinks, biases, norms off their defaults."""
    from hal.models.deepseek_v4.tensors import tensors

    generator = torch.Generator().manual_seed(seed)
    made = {}
    for spec in tensors(config):
        name, noise = spec.name, torch.randn(spec.shape, generator=generator)
        if spec.kind == "ids":
            value = (
                torch.rand(spec.shape[0], config.n_routed_experts, generator=generator)
                .topk(spec.shape[1])
                .indices.int()
            )
        elif name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("_scale"):
            value = 1 + 0.3 * noise
        elif name.endswith("gate.bias"):
            value = 0.2 * noise
        elif len(spec.shape) == 1 or name.endswith(".ape"):
            value = 0.5 * noise
        else:
            value = noise * spec.shape[-1] ** -0.5 * (1.0 if "embed" not in name else spec.shape[-1] ** 0.5)
        made[name] = value
    return made


def to_transformers(config: DeepseekV4Config) -> transformers.DeepseekV4Config:
    """The same configuration for transformers."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    for layer in range(config.num_hidden_layers):
        if config.kind(layer) == "hca":
            rates["heavily_compressed_attention"] = config.ratio(layer)
    fraction = config.qk_rope_head_dim / config.head_dim
    main = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": fraction}
    compress: dict[str, Any] = {"rope_theta": config.compress_rope_theta, "partial_rotary_factor": fraction}
    if config.rope_factor == 1:
        compress["rope_type"] = "default"
    else:
        compress |= {
            "rope_type": "yarn",
            "factor": config.rope_factor,
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "original_max_position_embeddings": config.rope_original_length,
            "attention_factor": 1.0,
        }
    same = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "q_lora_rank",
        "o_groups",
        "o_lora_rank",
        "index_n_heads",
        "index_head_dim",
        "index_topk",
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "sliding_window",
        "scoring_func",
        "routed_scaling_factor",
        "swiglu_limit",
        "hc_mult",
        "hc_sinkhorn_iters",
        "hc_eps",
        "rms_norm_eps",
        "rope_theta",
        "compress_rope_theta",
    ]
    hashed = config.num_hash_layers
    return transformers.DeepseekV4Config(
        **{name: getattr(config, name) for name in same},
        layer_types=[_LAYER_TYPES[config.kind(layer)] for layer in range(config.num_hidden_layers)],
        compress_rates=rates,
        mlp_layer_types=["hash_moe"] * hashed + ["moe"] * (config.num_hidden_layers - hashed),
        rope_parameters={"main": main, "compress": compress},
        partial_rotary_factor=fraction,
        eos_token_id=None,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def transformers_model(
    config: DeepseekV4Config, tensors: dict[str, torch.Tensor]
) -> transformers.DeepseekV4ForCausalLM:
    """transformers' DeepSeek-V4 with these weights; every one of its tensors must have been given."""
    model = transformers.DeepseekV4ForCausalLM(to_transformers(config)).eval()
    state = {}
    for name, value in model.state_dict().items():
        official = official_name(name)
        assert official is not None
        if official.endswith((".gate_up_proj", ".down_proj")):
            prefix, stack = official.rsplit(".", 1)
            halves = ("w1", "w3") if stack == "gate_up_proj" else ("w2",)
            state[name] = torch.stack(
                [torch.cat([tensors[f"{prefix}.{e}.{half}.weight"] for half in halves]) for e in range(value.shape[0])]
            )
        else:
            state[name] = tensors[official].to(value.dtype)
        assert state[name].shape == value.shape, name
    model.load_state_dict(state, strict=True)
    return model


def run(model: DeepseekV4, caches: Any, feeds: list[tuple[int, int, list[int]]]) -> list[torch.Tensor]:
    """One step: `(slot, start, new tokens)` per request; logits of every fed token, per request."""
    from hal.batch import Batch

    caches.reserve([(slot, start, start + len(tokens)) for slot, start, tokens in feeds])
    lengths = [len(tokens) for _, _, tokens in feeds]
    batch = Batch.build(lengths, [start for _, start, _ in feeds], [slot for slot, _, _ in feeds], model.device)
    ids = torch.tensor([token for _, _, tokens in feeds for token in tokens], dtype=torch.int64)
    return list(model.head_logits(model(ids, batch, caches)).split(lengths))


def random_tokens(config: DeepseekV4Config, length: int, seed: int) -> list[int]:
    """Tokens that depend on nothing but their number and the seed."""
    ids = torch.randint(0, config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    tokens: list[int] = ids.tolist()
    return tokens


@pytest.fixture(scope="session", params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both backends that need no device; hal-cpu where it is installed."""
    name: str = request.param
    if name == "cpu":
        pytest.importorskip("hal_cpu")
    return name
