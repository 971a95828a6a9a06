"""torch_mlu_ops as it is installed. The only module that knows that its versions differ.

Signatures are looked at once, when an operator is first used; what an adapter calls here is the same for all of them.

| differs | 1.12.1 | earlier |
|---|---|---|
| attention's sink | `sink` | `learnable_sink`, or none |
| attention's longest context | `max_context_len` | `max_contxt_len` |
| the indexer's lengths | tokens, with `compress_ratio` | entries |
| int8 quantiser, product | `scaled_quantize`, `scaled_matmul` | `per_token_smooth_quantize`, `smooth_quant_matmul` |
| clamp of the gated activation | `swiglu_limit` | none: in torch, before the call |
| compressor's state | pages of `state_cache` | `kv_state` and `score_state`, a row per request: not called |
| channels of `fused_mhc_post` | up to 7168 | 4096 |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "attention",
    "gated_silu",
    "installed",
    "int8_matmul",
    "int8_rows",
    "offered",
    "operator",
    "select_entries",
    "streams_of_any_width",
    "version",
]

ALTERNATIVES = {
    "int8_rows": ("scaled_quantize", "per_token_smooth_quantize"),
    "int8_matmul": ("scaled_matmul", "smooth_quant_matmul"),
}
"""Capabilities that any one of several operators gives."""

SINK = "attention_with_sink"
"""The capability of an attention operator that takes a sink."""

PAGED = "compressor_with_paged_state"
"""The capability of a compressor whose state has a block table; earlier ones have the same names."""

FLOAT8 = "float8_products"
"""The capability of the card to multiply 8-bit floats: no name of a card says it, so a small product is tried."""


def installed() -> bool:
    """Whether torch_mlu_ops can be imported."""
    try:
        return find_spec("torch_mlu_ops") is not None and import_module("torch_mlu_ops") is not None
    except (ImportError, OSError, RuntimeError, ValueError):
        return False


def offered(capability: str) -> bool:
    """Whether the installed torch_mlu_ops has an operator, or one of the alternatives for a capability."""
    if not installed():
        return False
    module = import_module("torch_mlu_ops")
    if capability == FLOAT8:
        return _multiplies_float8()
    if capability == SINK:
        return bool({"sink", "learnable_sink"} & _parameters("single_query_cached_kv_attn"))
    if capability == PAGED:
        return hasattr(module, "fused_compress_multi_kv") and "state_cache" in _parameters("fused_compress_multi_kv")
    return any(hasattr(module, name) for name in ALTERNATIVES.get(capability, (capability,)))


@cache
def _multiplies_float8() -> bool:
    """One product of ones, of which the result is known."""
    try:
        ones = torch.ones(128, 128, device="mlu").to(torch.float8_e4m3fn)
        scale = torch.ones(128, 1, device="mlu")
        y = operator("scaled_matmul")(a=ones, b=ones, a_scale=scale, b_scale=scale[:1], output_dtype=torch.half)
        return bool((y == 128).all())
    except (AttributeError, RuntimeError, TypeError):
        return False


def version() -> str:
    """Of the installed torch_mlu_ops; empty where it does not say."""
    return str(getattr(import_module("torch_mlu_ops"), "__version__", ""))


def streams_of_any_width() -> bool:
    """Whether `fused_mhc_post` takes other channels than 4096: since the release that has 1.12's attention."""
    return offered("sliding_window_compress_attention")


@cache
def operator(name: str) -> Callable[..., Any]:
    """An operator that has the same signature, as far as adapters use it, in every version."""
    function: Callable[..., Any] = getattr(import_module("torch_mlu_ops"), name)
    return function


@cache
def _parameters(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(operator(name)).parameters)


def attention(
    q: Tensor, rows: Tensor, table: Tensor, lengths: Tensor, scale: float, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each query against its listed rows.

    Args:
        q: [tokens, heads, head_dim].
        rows: [n, head_dim], keys and values at once.
        table: int32 [tokens, most], rows of each query.
        lengths: int32 [tokens], how many of them count; at least 1.
        sink: float32 [heads], adds exp(sink) to the denominators.

    Returns:
        out like `q`, and lse float32 [tokens, heads]; whether that contains a sink is not documented.
    """
    known = _parameters("single_query_cached_kv_attn")
    words: dict[str, Any] = {"max_context_len" if "max_context_len" in known else "max_contxt_len": table.shape[1]}
    if "out_dtype" in known:
        words |= {"out_dtype": q.dtype, "compute_dtype": torch.float, "head_size_v": q.shape[-1]}
    if sink is not None:
        words["sink" if "sink" in known else "learnable_sink"] = sink
    out, lse = operator("single_query_cached_kv_attn")(
        q=q.unsqueeze(1),
        k_cache=rows.view(-1, 1, 1, rows.shape[-1]),
        v_cache=None,
        out=torch.empty_like(q).unsqueeze(1),
        block_tables=table,
        context_lens=lengths,
        k_cache_quant_scale=None,
        v_cache_quant_scale=None,
        alibi_slopes=None,
        windows_size_left=-1,
        windows_size_right=-1,
        softmax_scale=scale,
        return_lse=True,
        **words,
    )
    return out.squeeze(1), lse.squeeze(-1)


def select_entries(
    q: Tensor,
    weights: Tensor,
    pages: Tensor,
    table: Tensor,
    positions: Tensor,
    chosen: Tensor,
    *,
    entries: int,
    top_k: int,
    ratio: int,
    scale: float,
) -> None:
    """Write the best visible entries of each query into `chosen`; what is behind them keeps its value.

    Args:
        q: [tokens, 32 or 64, 128].
        weights: [tokens, heads].
        pages: [blocks, rows, 128].
        table: int32 [tokens, blocks per request], pages of each query's request.
        positions: int64 [tokens].
        chosen: int32 [tokens, top_k].
        entries: most that a query sees.
    """
    before = "compress_ratio" in _parameters("masked_indexer_select_paged_kv")
    lengths = positions + 1 if before else (positions + 1) // ratio
    names = torch.arange(entries, dtype=torch.int32, device=q.device).expand(len(q), -1).contiguous()
    operator("masked_indexer_select_paged_kv")(
        query=q.unsqueeze(1),
        k_cache=pages.unsqueeze(1),
        weights=weights[:, None, :, None],
        kv_cache_block_table=names,
        cu_seq_q_lens=None,
        cu_seq_k_lens=None,
        k_context_lens=lengths.int(),
        k_cache_block_table=table,
        is_prefill=False,
        index_topk=top_k,
        kv_cache_block_size=1,
        softmax_scale=scale,
        sparse_block_table=chosen,
        sparse_context_lens=torch.empty(len(q), dtype=torch.int32, device=q.device),
        is_score_float=True,
        **({"compress_ratio": ratio} if before else {}),
    )


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, channels] and float32 scales [rows] of rows of floats."""
    if offered("scaled_quantize"):
        codes, scales = operator("scaled_quantize")(x, quant_type=torch.int8, quant_mode="dynamic_per_token")
    else:
        codes, scales = operator("per_token_smooth_quantize")(x, smooth=torch.ones(x.shape[1], device=x.device))
    return codes, scales


def int8_matmul(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 a[m, k] times b[n, k] transposed; scales [m] and [n] -> [m, n] in half precision."""
    if offered("scaled_matmul"):
        y = operator("scaled_matmul")(a=a, b=b, a_scale=a_scale, b_scale=b_scale, output_dtype=dtype, quant_bit_size=8)
    else:
        y = operator("smooth_quant_matmul")(a=a, a_scale=a_scale, b=b, b_scale=b_scale, dtype=dtype)
    return y


def gated_silu(gate_up: Tensor, clamp: float) -> Tensor:
    """silu(gate) * up, gate clamped from above and up on both sides: [rows, 2 * inter] -> [rows, inter]."""
    words: dict[str, Any] = {}
    if "swiglu_limit" in _parameters("moe_active") and clamp == int(clamp) and 0 < clamp < 256:
        words["swiglu_limit"] = int(clamp)
    else:
        gate, up = gate_up.chunk(2, dim=-1)
        gate_up = torch.cat([gate.clamp(max=clamp), up.clamp(-clamp, clamp)], dim=-1)
    return operator("moe_active")(input=gate_up, act_mode="silu", is_gated=True, **words)
