"""The small model that both sides run, made by transformers and read by `hal` from the same safetensors file.

"tiny-512": one layer of each kind and a second CSA layer at DeepSeek-V4's real head dimension, index dimension, window,
top-k and number of streams, with few heads and a small hidden size; float32, random weights.
"""

from __future__ import annotations

import tempfile
from typing import Any

from hal.errors import BackendError
from hal.models.deepseek_v4 import DeepseekV4

TINY_512: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "compress_ratios": [0, 4, 128, 4],
    "num_attention_heads": 8,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 256,
    "o_groups": 2,
    "o_lora_rank": 256,
    "sliding_window": 128,
    "index_n_heads": 8,
    "index_head_dim": 128,
    "index_topk": 512,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 512,
    "num_hash_layers": 0,
    "hc_mult": 4,
    "max_position_embeddings": 1 << 20,
}


def pair(backend: str | None = None, seed: int = 0) -> tuple[DeepseekV4, Any]:
    """The same random weights as a `hal` model and as transformers' `DeepseekV4ForCausalLM`.

    Raises:
        BackendError: transformers is not installed, or has no DeepSeek-V4.
    """
    import torch

    try:
        from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
    except ImportError as error:
        raise BackendError(
            f"transformers' DeepseekV4ForCausalLM cannot be imported: {error}",
            where="hal bench",
            fix="run `pip install transformers==5.23.0`",
        ) from error
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    peer = DeepseekV4ForCausalLM(DeepseekV4Config(**TINY_512)).eval()
    torch.random.set_rng_state(generator_state)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = DeepseekV4.from_checkpoint(folder, backend=backend, dtype="float32")
    return model, peer
