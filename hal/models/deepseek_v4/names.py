"""Official tensor names from those that checkpoints use: official, transformers', and transformers' saved mixture."""

from __future__ import annotations

import re

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.", ""),
        (r"^embed_tokens\.", "embed."),
        (r"^lm_head\.", "head."),
        (r"^hc_head\.hc_", "hc_head_"),
        (r"\.self_attn\.", ".attn."),
        (r"\.mlp\.", ".ffn."),
        (r"\.input_layernorm\.", ".attn_norm."),
        (r"\.post_attention_layernorm\.", ".ffn_norm."),
        (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
        (r"\.compressor\.indexer\.(q_b_proj|scorer\.weights_proj)\.", r".indexer.\1."),
        (r"\.compressor\.indexer\.", ".indexer.compressor."),
        (r"\.scorer\.", "."),
        (r"\.q_a_proj\.", ".wq_a."),
        (r"\.q_b_proj\.", ".wq_b."),
        (r"\.kv_proj\.", ".wkv."),
        (r"(compressor)\.gate_proj\.", r"\1.wgate."),
        (r"\.o_([ab])_proj\.", r".wo_\1."),
        (r"\.q_a_norm\.", ".q_norm."),
        (r"(compressor)\.kv_norm\.", r"\1.norm."),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
        (r"\.sinks$", ".attn_sink"),
        (r"\.position_bias$", ".ape"),
        (r"\.gate\.e_score_correction_bias$", ".gate.bias"),
        (r"(shared_experts|experts\.\d+)\.gate_proj\.", r"\1.w1."),
        (r"(shared_experts|experts\.\d+)\.up_proj\.", r"\1.w3."),
        (r"(shared_experts|experts\.\d+)\.down_proj\.", r"\1.w2."),
        (r"\.weight_scale_inv$", ".scale"),
        (r"\.experts\.(gate_up_proj|down_proj)_scale_inv$", r".experts.\1.scale"),
    )
]
"""In order. The last but two undo what transformers 5.23 saves (`attn.norm`) as well as what it names in memory."""

_IGNORED = re.compile(r"^mtp\.\d+\.(embed|head|embed_tokens|shared_head)\.")
"""Copies of the embedding and the head inside MTP blocks, which are shared with the model."""


def official_name(name: str) -> str | None:
    """The official name of a tensor; None for a copy that is not needed. An unknown name comes back as it is."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return None if _IGNORED.match(name) else name
