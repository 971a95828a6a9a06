"""Simulated quantisation on: equal to transformers with the official code's rounding put in by hand.

The rounding here is written with ml_dtypes, apart from hal's formats. Rounding jumps: where the two sides differ by the
last bit of float32 before a rounding, they differ by one code after it. So a few logits may differ a little; without
the rounding, all do.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import DynamicCache

from hal.models.deepseek_v4 import DeepseekV4, DeepseekV4Config, Quantization, save_checkpoint
from hal.models.deepseek_v4.writer import official_weights

from . import conftest as lab

CONFIG = lab.tiny(
    hidden_size=128, head_dim=136, qk_rope_head_dim=8, q_lora_rank=128, o_lora_rank=64, index_head_dim=32,
    moe_intermediate_size=64, num_nextn_predict_layers=0, compress_ratios=(0, 4, 16, 4), index_topk=6,
)  # fmt: skip


def rounded(x: torch.Tensor, block: int, dtype: Any, largest: float, floor: float) -> torch.Tensor:
    """Blocks of the last dimension through `dtype` with a power-of-two scale, at least `amax / largest`."""
    values = x.detach().float().numpy().reshape(*x.shape[:-1], -1, min(block, x.shape[-1]))
    amax = np.maximum(np.abs(values).max(-1, keepdims=True), floor)
    mantissa, exponent = np.frexp(amax / np.float32(largest))
    scale = np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent))
    codes = (values / scale).astype(dtype).astype(np.float32)
    return torch.from_numpy((codes * scale).reshape(x.shape)).to(x.dtype)


def activation(x: torch.Tensor) -> torch.Tensor:
    return rounded(x, 128, ml_dtypes.float8_e4m3fn, 448.0, 1e-4)


def kv_row(x: torch.Tensor, rope: int) -> torch.Tensor:
    """A cached row: e4m3 in blocks of 64 where there is no rotation, bfloat16 where there is."""
    plain = rounded(x[..., :-rope], 64, ml_dtypes.float8_e4m3fn, 448.0, 1e-4)
    return torch.cat([plain, x[..., -rope:].bfloat16().float()], -1)


def index_row(x: torch.Tensor) -> torch.Tensor:
    """Orthonormal Hadamard by its recursion, then FP4 in blocks of 32."""
    size = x.shape[-1]
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return rounded(x @ matrix * size**-0.5, 32, ml_dtypes.float4_e2m1fn, 6.0, 6.0 * 2.0**-126)


def add_rounding(model: transformers.DeepseekV4ForCausalLM, config: DeepseekV4Config) -> DynamicCache:
    """Put the official code's rounding into transformers' modules; returns the cache that rounds what it keeps."""
    rope = config.qk_rope_head_dim
    quantized = ("q_a_proj", "q_b_proj", "kv_proj", "o_b_proj", "gate_proj", "up_proj", "down_proj")
    for name, module in model.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        in_compressor = ".compressor." in name and leaf != "q_b_proj"
        if isinstance(module, torch.nn.Linear) and leaf in quantized and not in_compressor:
            module.register_forward_pre_hook(lambda _, args: (activation(args[0]),))
        elif leaf == "scorer":
            module.register_forward_pre_hook(lambda _, args: (index_row(args[0]), *args[1:]))
        elif leaf == "experts":
            module.forward = types.MethodType(experts, module)

    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        update = layer.update
        layer.update = lambda k, v, *rest, update=update, **more: update(
            kv_row(k, rope), kv_row(v, rope), *rest, **more
        )
        if hasattr(layer, "update_compressor_states"):
            keep = layer.update_compressor_states

            def kept(name: str, rows: torch.Tensor, keep: Any = keep) -> torch.Tensor:
                new = index_row(rows) if name == "indexer" else kv_row(rows, rope)
                result: torch.Tensor = keep(name, new if rows.shape[1] else rows)
                return result

            layer.update_compressor_states = kept
    return cache


def experts(self: Any, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Routed experts of the official code: routing weight before the second product, activations rounded for both."""
    out = torch.zeros_like(x)
    rows = activation(x)
    for token, slot in np.ndindex(*ids.shape):
        expert = int(ids[token, slot])
        gate, up = (rows[token] @ self.gate_up_proj[expert].T).chunk(2)
        inner = F.silu(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit) * weights[token, slot]
        out[token] += activation(inner[None])[0] @ self.down_proj[expert].T
    return out


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_official_rounding(seed: int, tmp_path: Any) -> None:
    model = DeepseekV4.from_tensors(CONFIG, lab.random_tensors(CONFIG, seed), backend="reference")
    save_checkpoint(tmp_path, model, quantization=Quantization("fp4"))
    ours = DeepseekV4.from_checkpoint(tmp_path, backend="reference")
    weights = {
        name: w if isinstance(w, torch.Tensor) else w.dequantize(torch.float32) for name, w in official_weights(ours)
    }
    oracle = lab.transformers_model(replace(CONFIG, quantization=None), weights)
    prompt = torch.randint(0, CONFIG.vocab_size, (90,), generator=torch.Generator().manual_seed(seed))
    exact = oracle(prompt[None]).logits[0]
    right = oracle(prompt[None], past_key_values=add_rounding(oracle, CONFIG), use_cache=True).logits[0]
    got = ours.logits([prompt.tolist()])[0]
    effect, error = (right - exact).square().mean().sqrt(), (got - right).square().mean().sqrt()
    assert effect > 0.02
    assert error < 0.01 * effect, (error, effect)
    near = ((got - right).abs() < 1e-4).float().mean()
    assert near > 0.95, near
