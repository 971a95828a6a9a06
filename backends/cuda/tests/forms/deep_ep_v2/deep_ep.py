"""DeepEP V2: the elastic buffer's signatures. `group` is as `deep_ep_ops` has it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import deep_ep_ops as ops
from deep_ep_ops import want
from torch import Tensor


class ElasticBuffer:
    def __init__(
        self,
        group: Any,
        num_bytes: int | None = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        deterministic: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3,
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300,
        num_gpu_timeout_secs: int = 100,
        explicitly_destroy: bool = False,
    ) -> None:
        self.group, self.hidden, self.num_topk = group, hidden, num_topk
        self.num_max_tokens_per_rank, self.use_fp8_dispatch = num_max_tokens_per_rank, use_fp8_dispatch

    def dispatch(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        cumulative_local_expert_recv_stats: Tensor | None = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
        handle: Any = None,
        do_handle_copy: bool = True,
        do_cpu_sync: bool | None = None,
        do_expand: bool = False,
        do_zero_padding: bool = False,
        use_tma_aligned_col_major_sf: bool = False,
    ) -> tuple[Any, Tensor | None, Tensor | None, Any, Any]:
        assert do_expand
        assert do_cpu_sync is not False
        assert topk_idx is not None
        assert topk_weights is not None
        assert num_experts is not None
        rows, sf = x if isinstance(x, tuple) else (x, None)
        want((sf is not None) == self.use_fp8_dispatch, "FP8 in a buffer of bfloat16, or the reverse")
        want(rows.shape[1] == self.hidden and topk_idx.shape[1] == self.num_topk, "rows of another buffer")
        most, align = num_max_tokens_per_rank or self.num_max_tokens_per_rank, expert_alignment or 1
        want(most <= self.num_max_tokens_per_rank, f"{most} tokens")
        got = ops.dispatch(self.group, rows, sf, topk_idx, topk_weights, most, num_experts, align)
        made = SimpleNamespace(
            psum_num_recv_tokens_per_expert=got.ends,
            num_unaligned_recv_tokens_per_expert=got.counts,
            num_recv_tokens_per_expert_list=got.counts.tolist(),
            expert_alignment=align,
            recv_src_metadata=got.metadata,
            topk_idx=topk_idx,
            num_max_tokens_per_rank=most,
            num_expanded_tokens=len(got.rows),
        )
        return got.rows if got.sf is None else (got.rows, got.sf), None, got.weights, made, None

    def combine(
        self,
        x: Tensor,
        handle: Any,
        topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Any]:
        want(x.shape == (handle.num_expanded_tokens, self.hidden), f"rows {tuple(x.shape)}")
        want(topk_weights is None, "weights here, which the rows have")
        want(bias is None or isinstance(bias, Tensor), "two biases here")
        most, tokens = handle.num_max_tokens_per_rank, len(handle.topk_idx)
        return ops.combine(self.group, x, handle.recv_src_metadata, most, tokens, bias), None, None
