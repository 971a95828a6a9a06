"""DeepGEMM 2.6: functions compiled with pybind11, which say their signatures in their docstrings only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import deep_gemm_ops as ops
import torch
from megamoe_ops import SymmBuffer, mega_moe, transform
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class Compiled:
    """A function as pybind11 makes it: `inspect` finds no signature, wrong keywords are a TypeError."""

    __signature__ = "none"

    def __init__(self, body: Callable[..., Any]) -> None:
        self._signature, self._body = inspect.signature(body), body
        words = ", ".join(str(one).replace("'", "") for one in self._signature.parameters.values())
        self.__doc__ = f"{body.__name__}({words}) -> object\n\nCompiled."

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._body(*self._signature.bind(*args, **kwargs).args, **self._signature.bind(*args, **kwargs).kwargs)


@Compiled
def fp8_fp4_gemm_nt(
    a: Pair,
    b: Pair,
    d: Tensor,
    c: Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    ops.gemm(*a, *b, d, c, recipe, recipe_a, recipe_b)


@Compiled
def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: Tensor,
    grouped_layout: Tensor,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    assert not use_psum_layout
    ops.grouped(*a, *b, d, grouped_layout, recipe, recipe_a, recipe_b)


@Compiled
def transform_sf_into_required_layout(
    sf: Tensor,
    mn: int,
    k: int,
    recipe: tuple[int, ...],
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
) -> Tensor:
    return ops.transform(sf, mn, k, recipe, num_groups, is_sfa)


@Compiled
def get_paged_mqa_logits_metadata(context_lens: Tensor, block_kv: int, num_sms: int) -> Tensor:
    return ops.schedule(context_lens, block_kv, num_sms)


@Compiled
def fp8_fp4_paged_mqa_logits(
    q: tuple[Tensor, Tensor | None],
    kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    clean_logits: bool = False,
    logits_dtype: torch.dtype = torch.float32,
) -> Tensor:
    assert not clean_logits, "cleaning is not supported for paged logits"
    return ops.paged_logits(
        *q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len, logits_dtype
    )


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
    use_fp8_dispatch: bool = True,
    activation: str = "swiglu",
) -> SymmBuffer:
    return SymmBuffer(group, num_experts, num_max_tokens_per_rank, num_topk, hidden, intermediate_hidden)


def transform_weights_for_mega_moe(l1_weights: Pair, l2_weights: Pair) -> tuple[Pair, Pair]:
    return transform(l1_weights, l2_weights)


def fp8_fp4_mega_moe(
    y: Tensor,
    l1_weights: Pair,
    l2_weights: Pair,
    sym_buffer: SymmBuffer,
    cumulative_local_expert_recv_stats: Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 32),
    activation: str = "swiglu",
    activation_clamp: float | None = None,
    fast_math: bool = True,
) -> None:
    assert cumulative_local_expert_recv_stats is None
    assert activation_clamp is not None
    mega_moe(y, l1_weights, l2_weights, sym_buffer, recipe, activation, activation_clamp)
