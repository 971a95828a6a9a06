"""DeepEP V2 among threads: the elastic buffer's signatures, and what its documentation says that they do.

`group` has `rank()`, `size()` and, instead of a network, `exchange(value)`, which gives every process's value.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def _want(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"DeepEP refuses {what}")


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
        tokens, hidden = rows.shape
        _want((sf is not None) == self.use_fp8_dispatch, "FP8 in a buffer of bfloat16, or the reverse")
        _want(rows.dtype == (torch.bfloat16 if sf is None else torch.float8_e4m3fn), f"rows of {rows.dtype}")
        _want(rows.is_contiguous() and hidden == self.hidden, f"rows of {hidden} channels")
        if sf is not None:
            fits = sf.dtype == torch.float32 and sf.shape == (tokens, -(-hidden // 128))
            _want(fits, f"scales {sf.dtype} {tuple(sf.shape)}")
        _want(topk_idx.dtype == torch.int64 and topk_idx.shape == (tokens, self.num_topk), f"ids {topk_idx.dtype}")
        _want(topk_weights.dtype == torch.float32 and topk_weights.shape == topk_idx.shape, "weights")
        _want(bool((topk_idx < num_experts).all() and (topk_idx >= -1).all()), "an expert that is not there")
        most = num_max_tokens_per_rank or self.num_max_tokens_per_rank
        _want(tokens <= most and most <= self.num_max_tokens_per_rank, f"{tokens} tokens of {most}")
        everyone = self.group.exchange((rows, sf, topk_idx, topk_weights, most, num_experts))
        _want(len({one[4:] for one in everyone}) == 1, "processes that do not agree")
        _want(num_experts % self.group.size() == 0, f"{num_experts} experts among {self.group.size()}")
        local, align = num_experts // self.group.size(), expert_alignment or 1
        source, starts, counts, place = [], [], [], 0
        for expert in range(self.group.rank() * local, (self.group.rank() + 1) * local):
            pairs = [
                (rank, int(token), int(slot))
                for rank, one in enumerate(everyone)
                for token, slot in (one[2] == expert).nonzero()
            ]
            place = -(-place // align) * align
            starts.append(place)
            counts.append(len(pairs))
            source += [(place + number, *pair) for number, pair in enumerate(pairs)]
            place += len(pairs)
        length = -(-place // align) * align
        bits = torch.full((length, hidden), 0x7F, dtype=torch.uint8)  # NaN in FP8
        got = torch.full((length, hidden), torch.nan).bfloat16() if sf is None else bits.view(torch.float8_e4m3fn)
        got_sf = None if sf is None else torch.full((length, sf.shape[1]), torch.nan)
        factors = torch.full((length,), torch.nan)
        for row, rank, token, slot in source:
            got.view(torch.uint8)[row] = everyone[rank][0].view(torch.uint8)[token]
            factors[row] = everyone[rank][3][token, slot]
            if got_sf is not None:
                got_sf[row] = everyone[rank][1][token]
        ends = torch.tensor([start + count for start, count in zip(starts, counts, strict=True)], dtype=torch.int32)
        made = SimpleNamespace(
            psum_num_recv_tokens_per_expert=ends,
            num_unaligned_recv_tokens_per_expert=torch.tensor(counts, dtype=torch.int32),
            num_recv_tokens_per_expert_list=counts,
            expert_alignment=align,
            source=source,
            tokens=tokens,
            length=length,
        )
        return got if got_sf is None else (got, got_sf), None, factors, made, None

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
        _want(x.dtype == torch.bfloat16 and x.is_contiguous(), f"rows of {x.dtype}")
        _want(x.shape == (handle.length, self.hidden), f"rows {tuple(x.shape)}")
        _want(topk_weights is None, "weights here, which the rows have")
        total = torch.zeros(handle.tokens, self.hidden)
        for rank, (rows, source) in enumerate(self.group.exchange((x, handle.source))):
            _want(rank < self.group.size(), "a process too many")
            for row, to, token, _ in source:
                if to == self.group.rank():
                    total[token] += rows[row].float()
        if bias is not None:
            assert isinstance(bias, Tensor)
            _want(bias.dtype == torch.bfloat16 and bias.shape == total.shape and bias.is_contiguous(), "bias")
            total += bias.float()
        return total.bfloat16(), None, None
