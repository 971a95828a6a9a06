"""DeepGEMM 2.8: Python functions over operators; logits have no dtype and are never cleaned."""

from __future__ import annotations

from typing import Any

import deep_gemm_ops as ops
from megamoe_ops import SymmBuffer, mega_moe, transform
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def fp8_fp4_gemm_nt(
    a: Pair,
    b: Pair,
    d: Tensor,
    c: Tensor | None = None,
    recipe: Any = None,
    recipe_a: Any = None,
    recipe_b: Any = None,
    compiled_dims: str = "",
    disable_ue8m0_cast: bool = False,
    alpha: float | None = None,
    epilogue: Any = None,
) -> None:
    ops.gemm(*a, *b, d, c, recipe, recipe_a, recipe_b)


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: Tensor,
    grouped_layout: Tensor,
    recipe: Any = None,
    recipe_a: Any = None,
    recipe_b: Any = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
    epilogue: Any = None,
) -> None:
    assert not use_psum_layout
    ops.grouped(*a, *b, d, grouped_layout, recipe, recipe_a, recipe_b)


def transform_sf_into_required_layout(
    sf: Tensor,
    mn: int,
    k: int,
    recipe: tuple[int, ...],
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
    psum_layout: Tensor | None = None,
) -> Tensor:
    return ops.transform(sf, mn, k, recipe, num_groups, is_sfa)


def get_paged_mqa_logits_metadata(
    context_lens: Tensor, block_kv: int, num_sms: int, indices: Tensor | None = None
) -> Tensor:
    return ops.schedule(context_lens, block_kv, num_sms, indices)


def fp8_fp4_paged_mqa_logits(
    q: Tensor | tuple[Tensor, Tensor | None],
    kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    indices: Tensor | None = None,
) -> Tensor:
    query, q_sf = q if isinstance(q, tuple) else (q, None)
    ops.want(ops.ARCH[0] != 10, "float32 weights on this chip: its logits are bfloat16 in this version")
    return ops.paged_logits(query, q_sf, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len)


def get_mk_alignment_for_contiguous_layout() -> int:
    return ops.ALIGNMENT


def get_num_sms() -> int:
    return ops.SMS


def get_symm_buffer_for_mega_moe(
    group: Any,
    num_experts: int,
    num_max_tokens_per_rank: int,
    num_topk: int,
    hidden: int,
    intermediate_hidden: int,
    num_shared_experts: int = 0,
    use_fp8_dispatch: bool | None = None,
    mma_type: str = "fp8xfp4",
    activation: str = "swiglu",
) -> SymmBuffer:
    assert num_shared_experts == 0
    assert mma_type == "fp8xfp4"
    return SymmBuffer(group, num_experts, num_max_tokens_per_rank, num_topk, hidden, intermediate_hidden)


def transform_weights_for_mega_moe(
    l1_weights: Pair, l2_weights: Pair, activation: str = "swiglu", mma_type: str = "fp8xfp4"
) -> tuple[Pair, Pair]:
    return transform(l1_weights, l2_weights)


def fp8_fp4_mega_moe(
    y: Tensor,
    l1_weights: Pair,
    l2_weights: Pair,
    sym_buffer: SymmBuffer,
    shared_l1_weights: Pair | None = None,
    shared_l2_weights: Pair | None = None,
    cumulative_local_expert_recv_stats: Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 32),
    activation: str = "swiglu",
    activation_clamp: float | None = None,
    fast_math: bool = True,
    use_x_scales: bool = False,
    l1_alphas: Tensor | None = None,
    l2_alphas: Tensor | None = None,
    l2_act_scales: Tensor | None = None,
    weight_layout: str = "megamoe",
    global_num_tokens: int | None = None,
    post_expert_norm: bool = False,
    post_expert_norm_weight: Tensor | None = None,
    post_expert_norm_eps: float = 1e-6,
    post_expert_norm_weight_first: bool = False,
) -> None:
    assert shared_l1_weights is None
    assert cumulative_local_expert_recv_stats is None
    assert activation_clamp is not None
    mega_moe(y, l1_weights, l2_weights, sym_buffer, recipe, activation, activation_clamp)
