"""`mhc.pre` and `mhc.post` with vllm-ascend's operators, which compute in float32 and round once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["post", "pre"]


def pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`mhc.pre`: streams[tokens, 4, hidden] -> y[tokens, hidden], post[tokens, 4], comb[tokens, 4, 4]."""
    tokens, n, hidden = streams.shape
    if not tokens:
        return streams.new_empty(0, hidden), fn.new_empty(0, n), fn.new_empty(0, n, n)
    operator = torch.ops._C_ascend.npu_hc_pre_v2
    return operator(streams.contiguous(), fn.contiguous(), scale, base, n, iterations, norm_eps, eps)


def post(y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`mhc.post`: y[tokens, hidden], streams[tokens, 4, hidden] -> [tokens, 4, hidden]. The operator wants a batch."""
    if not len(streams):
        return torch.empty_like(streams)
    batch = (each.contiguous().unsqueeze(0) for each in (y, streams, post, comb))
    return torch.ops._C_ascend.npu_hc_post(*batch).squeeze(0)
