"""Hyper-connections by torch_mlu_ops. The projection is torch's own float32 product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hal_mlu import tmo


def pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`mhc.pre`: streams [tokens, 4, hidden] -> y in their dtype, post and comb float32."""
    tokens, n, hidden = streams.shape
    if not tokens:
        empty = streams.new_empty(0, n, n, dtype=torch.float32)
        return streams.new_empty(0, hidden), empty[:, :, 0], empty
    flat = streams.flatten(-2).float()
    norm = torch.rsqrt(torch.linalg.vector_norm(flat, dim=-1).square() / flat.shape[-1] + norm_eps)
    weights, post, comb = tmo.operator("hc_split_sinkhorn")(
        mixes=F.linear(flat, fn).unsqueeze(0),
        hc_scale=scale,
        hc_base=base,
        pre_scale=norm.unsqueeze(0),
        hc_mult=n,
        sinkhorn_iter=iterations,
        eps=eps,
    )
    y = tmo.operator("fused_mul_reduce_sum")(streams.contiguous(), weights.squeeze(0))
    return y, post.squeeze(0), comb.squeeze(0)


def post(y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`mhc.post`: y [tokens, hidden] onto streams [tokens, 4, hidden], in their dtype."""
    if not len(y):
        return streams.clone()
    out: Tensor = tmo.operator("fused_mhc_post")(
        x=y.contiguous(),
        residual=streams.contiguous(),
        post=post.contiguous(),
        comb=comb.contiguous(),
        compute_rms=False,
        eps=0.0,
    )
    return out
