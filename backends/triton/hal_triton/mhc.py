"""`mhc.pre`, `mhc.post`."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_triton.kernels.mhc import WIDTH, mix_kernel, post_kernel, pre_kernel
from hal_triton.launch import launch, tiles
from hal_triton.tuning import chip, config


def pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, iterations: int, norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`mhc.pre`: streams[tokens, n, hidden] bfloat16 -> y, post, comb; fn, scale, base float32.

    The number of parts is the table's, whatever the batch: a token's bits do not depend on the others.
    """
    tokens, n, hidden = streams.shape
    streams, fn, device = streams.contiguous(), fn.contiguous(), streams.device
    y = torch.empty(tokens, hidden, dtype=streams.dtype, device=device)
    post = torch.empty(tokens, n, device=device)
    comb = torch.empty(tokens, n, n, device=device)
    mixing = config("mhc-mix", chip())
    parts = torch.empty(mixing["PARTS"], tokens, WIDTH.value, device=device)
    work = tiles(tokens, mixing["BM"]) * mixing["PARTS"]
    launch(mix_kernel, work, mixing, streams, fn, parts, tokens, MIXES=len(fn), FEATURES=n * hidden)
    tuned = config("mhc-pre", chip())
    launch(
        pre_kernel,
        tiles(tokens, tuned["R"]),
        tuned,
        streams,
        parts,
        scale,
        base,
        y,
        post,
        comb,
        tokens,
        iterations,
        norm_eps,
        eps,
        N=n,
        HIDDEN=hidden,
        PARTS=mixing["PARTS"],
    )
    return y, post, comb


def post(y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`mhc.post`: y[tokens, hidden] onto streams[tokens, n, hidden], in their dtype."""
    tokens, n, hidden = streams.shape
    streams, tuned = streams.contiguous(), config("mhc-post", chip())
    out = torch.empty_like(streams)
    work = tiles(tokens, tuned["R"]) * tiles(hidden, tuned["C"])
    arguments = (y.contiguous(), streams, post.contiguous(), comb.contiguous(), out)
    launch(post_kernel, work, tuned, *arguments, tokens, N=n, HIDDEN=hidden)
    return out
