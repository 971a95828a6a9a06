"""Hyper-connections (csrc/moe/hc_pre, hc_post and the checks of csrc/torch_binding.cpp): V4's own sizes, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.custom import kernel

STREAMS = 4
WIDTHS = (4096, 7168)


@kernel
def npu_hc_pre_v2(
    x: Tensor,
    hc_fn: Tensor,
    hc_scale: Tensor,
    hc_base: Tensor,
    hc_mult: int,
    hc_sinkhorn_iters: int,
    norm_eps: float,
    hc_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [.., 4, d] -> y [.., d] bf16, post [.., 4] and comb [.., 4, 4] float32."""
    mixes = (2 + STREAMS) * STREAMS
    if x.dim() not in (3, 4) or x.dtype != torch.bfloat16 or not x.numel() or x.shape[-1] not in WIDTHS:
        raise RuntimeError(f"x is bf16 [(batch,) tokens, 4, 4096 or 7168], not {x.dtype} {list(x.shape)}")
    if hc_mult != STREAMS or x.shape[-2] != STREAMS:
        raise RuntimeError(f"hc_mult and the streams of x are {STREAMS}, not {hc_mult} and {x.shape[-2]}")
    shapes = [tuple(each.shape) for each in (hc_fn, hc_scale, hc_base)]
    if shapes != [(mixes, STREAMS * x.shape[-1]), (3,), (mixes,)]:
        raise RuntimeError(f"hc_fn, hc_scale and hc_base are [24, 4 d], [3] and [24], not {shapes}")
    if any(each.dtype != torch.float32 for each in (hc_fn, hc_scale, hc_base)):
        raise RuntimeError("hc_fn, hc_scale and hc_base are float32")
    rows = x.float()
    flat = rows.flatten(-2)
    projected = flat @ hc_fn.T / (flat.square().mean(-1, keepdim=True) + norm_eps).sqrt()
    collapse = torch.sigmoid(projected[..., :4] * hc_scale[0] + hc_base[:4]) + hc_eps
    expand = 2 * torch.sigmoid(projected[..., 4:8] * hc_scale[1] + hc_base[4:8])
    square = (projected[..., 8:] * hc_scale[2] + hc_base[8:]).unflatten(-1, (STREAMS, STREAMS))
    square = torch.softmax(square, -1) + hc_eps
    for turn in range(2 * hc_sinkhorn_iters - 1):  # columns, then rows and columns in turn
        square = square / (square.sum(-1 if turn % 2 else -2, keepdim=True) + hc_eps)
    return (collapse.unsqueeze(-1) * rows).sum(-2).to(x.dtype), expand, square


@kernel
def npu_hc_post(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """x [b, s, d], residual [b, s, n, d], post [b, s, n], comb [b, s, n, n] -> [b, s, n, d] in residual's dtype."""
    lead, n = tuple(x.shape[:-1]), residual.shape[-2]
    if x.dim() != 3 or not x.numel() or tuple(residual.shape) != (*lead, n, x.shape[-1]):
        raise RuntimeError(f"x is [b, s, d] and residual [b, s, n, d], not {list(x.shape)} and {list(residual.shape)}")
    if tuple(post.shape) != (*lead, n) or tuple(comb.shape) != (*lead, n, n):
        raise RuntimeError(f"post is [b, s, n] and comb [b, s, n, n], not {list(post.shape)} and {list(comb.shape)}")
    if x.dtype != residual.dtype or post.dtype != comb.dtype:
        raise RuntimeError("x and residual have one dtype, post and comb have one")
    mixed = torch.einsum("bsjk,bsjd->bskd", comb.float(), residual.float())
    return (mixed + post.float().unsqueeze(-1) * x.float().unsqueeze(-2)).to(residual.dtype)
