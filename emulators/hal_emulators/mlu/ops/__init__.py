"""A stand-in for torch_mlu_ops: published signatures, documented limits, bodies from the documented mathematics.

Signatures are those of torch_mlu_ops 1.12.1 (`_ops.py`), of the build vllm-mlu b992520 calls (here 1.8) and of 1.5 as
dlinfer a50184e calls it. An argument value that is legal there and not computed here is refused, never ignored.
"""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType

from hal.errors import UnknownName
from hal_emulators.mlu.ops import (
    attention,
    compressor,
    connections,
    earlier,
    products,
    quantization,
    routing,
    rows,
    sparse,
)

__all__ = ["VERSIONS", "generation"]

_LATEST = {
    function.__name__: function
    for function in (
        compressor.fused_compress_multi_kv,
        compressor.fused_compress_single_kv,
        connections.fused_mhc_post,
        connections.fused_mul_reduce_sum,
        connections.hc_split_sinkhorn,
        attention.concat_block_table,
        attention.single_query_cached_kv_attn,
        attention.sliding_window_compress_attention,
        attention.update_out_and_lse,
        products.group_gemm,
        products.matmul,
        products.scaled_matmul,
        products.smooth_quant_group_gemm,
        quantization.moe_quantize,
        quantization.scaled_quantize,
        routing.moe_active,
        routing.moe_combine_result,
        routing.moe_expand_input,
        routing.moe_gen_idx,
        routing.moe_sigmoid_topk,
        routing.moe_softplus_topk,
        rows.apply_rotary,
        rows.reshape_paged_cache,
        sparse.masked_indexer_select_paged_kv,
    )
}
_SINCE_8 = (
    "concat_block_table",
    "fused_mhc_post",
    "fused_mul_reduce_sum",
    "hc_split_sinkhorn",
    "masked_indexer_select_paged_kv",
    "moe_softplus_topk",
    "scaled_matmul",
    "scaled_quantize",
    "update_out_and_lse",
)
_SINCE_12 = ("fused_compress_multi_kv", "fused_compress_single_kv", "sliding_window_compress_attention")


def _without(*names: str) -> dict[str, object]:
    return {name: function for name, function in _LATEST.items() if name not in names}


VERSIONS = {
    "1.12.1": _LATEST,
    "1.8.0": {**_without(*_SINCE_12), **earlier.EIGHT},
    "1.5.0": {**_without(*_SINCE_12, *_SINCE_8), **earlier.FIVE},
}
"""Operators of each version, by name."""


def generation(version: str) -> ModuleType | None:
    """The module as that version publishes it; None for "none".

    Raises:
        UnknownName: no such version is emulated.
    """
    if version == "none":
        return None
    if version not in VERSIONS:
        known = ", ".join((*VERSIONS, "none"))
        raise UnknownName(
            f"torch_mlu_ops {version} is not emulated", where="EMULATED_TORCH_MLU_OPS", fix=f"use one of {known}"
        )
    module = ModuleType("torch_mlu_ops")
    module.__dict__.update(VERSIONS[version], __version__=version)
    module.__spec__ = ModuleSpec(module.__name__, None)
    return module
