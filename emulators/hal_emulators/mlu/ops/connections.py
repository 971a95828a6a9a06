"""Hyper-connections: `hc_split_sinkhorn`, `fused_mul_reduce_sum`, `fused_mhc_post`."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import FLOATS, HALVES, Checks, operator

F32 = (torch.float32,)
WIDEST = 7168
"""Channels that `fused_mhc_post` takes."""


@operator
def hc_split_sinkhorn(
    mixes: Tensor,
    hc_scale: Tensor,
    hc_base: Tensor,
    pre_scale: Tensor | None = None,
    hc_mult: int = 4,
    sinkhorn_iter: int = 20,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """pre, post and comb of mixes [B, S, (2 + hc_mult) hc_mult], which `pre_scale` [B, S] scales first."""
    check = Checks("hc_split_sinkhorn", mixes=(2 + hc_mult) * hc_mult)
    check("mixes", mixes, (torch.bfloat16, *F32), "B S mixes")
    check("hc_scale", hc_scale, F32, "3")
    check("hc_base", hc_base, F32, "mixes")
    check("pre_scale", pre_scale, F32, "B S")
    check.that(sinkhorn_iter >= 1, f"sinkhorn_iter is {sinkhorn_iter}")
    scaled = mixes.float() if pre_scale is None else mixes.float() * pre_scale.unsqueeze(-1)
    spread = torch.tensor([hc_mult, hc_mult, hc_mult * hc_mult])
    logits = scaled * hc_scale.repeat_interleave(spread) + hc_base
    pre = 1 / (1 + torch.exp(-logits[..., :hc_mult])) + eps
    post = 2 / (1 + torch.exp(-logits[..., hc_mult : 2 * hc_mult]))
    comb = logits[..., 2 * hc_mult :].unflatten(-1, (hc_mult, hc_mult))
    comb = torch.exp(comb - comb.amax(-1, keepdim=True))
    comb = comb / comb.sum(-1, keepdim=True) + eps
    for turn in range(sinkhorn_iter):
        if turn:
            comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return pre, post, comb


@operator
def fused_mul_reduce_sum(x: Tensor, w: Tensor) -> Tensor:
    """Rows x [n, t, c] weighed by w [n, t] and added up over t."""
    check = Checks("fused_mul_reduce_sum")
    check("x", x, HALVES, "n t c")
    check("w", w, F32, "n t")
    check.that(0 < x.shape[1] <= 8 and 0 < x.shape[2] <= 4096, f"x is {list(x.shape)}, wanted t 1..8, c 1..4096")
    return torch.einsum("ntc,nt->nc", x.float(), w).to(x.dtype)


@operator
def fused_mhc_post(
    x: Tensor,
    residual: Tensor,
    post: Tensor,
    comb: Tensor,
    compute_rms: bool,
    eps: float,
    output: Tensor | None = None,
    output_rms: Tensor | None = None,
) -> Tensor:
    """A sub-layer's output x [n, dim] onto the streams, which mix: comb [n, j, k] sends stream j to k."""
    check = Checks("fused_mhc_post")
    _post(check, x, residual, post, comb, output)
    check.that(x.shape[1] <= WIDEST, f"dim is {x.shape[1]}, wanted at most {WIDEST}")
    check.that(not compute_rms and output_rms is None, "the norm of the output (compute_rms) is not emulated")
    made = (torch.einsum("njk,njc->nkc", comb, residual.float()) + post[:, :, None] * x.float()[:, None]).to(x.dtype)
    return made if output is None else output.copy_(made)


def _post(check: Checks, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor, output: Tensor | None) -> None:
    check("x", x, FLOATS, "n dim")
    check("residual", residual, (x.dtype,), "n 4 dim")
    check("post", post, F32, "n 4")
    check("comb", comb, F32, "n 4 4")
    check("output", output, (x.dtype,), "n 4 dim")
