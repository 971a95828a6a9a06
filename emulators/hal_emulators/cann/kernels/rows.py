"""Norms, gates, rotations, scattered rows: aclnnRmsNorm, SwiGlu, RotaryPositionEmbeddingV2, ScatterNdUpdate."""

from __future__ import annotations

import torch

from hal_emulators.cann.abi import Argument
from hal_emulators.cann.calls import kernel

INTERLEAVED = 1


@kernel("TTdTT", "aclnnRmsNorm")
def rms_norm(x: Argument, gamma: Argument, eps: float, out: Argument, inverse: Argument) -> None:
    wide = x.values().float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out.write(wide * factor * gamma.values().float())
    inverse.write(factor.view(inverse.shape))


@kernel("TiT", "aclnnSwiGlu")
def swiglu(x: Argument, dim: int, out: Argument) -> None:
    gate, up = x.values().float().chunk(2, dim)
    out.write(torch.nn.functional.silu(gate) * up)


@kernel("TTTiTT", "aclnnRotaryPositionEmbeddingV2")
def rotary(x: Argument, cos: Argument, sin: Argument, mode: int, rotate: Argument | None, out: Argument) -> None:
    """Cosines and sines hold each value twice, once per channel of a pair."""
    if mode != INTERLEAVED:
        raise NotImplementedError("only interleaved pairs are emulated")
    wide = x.values().float()
    turned = torch.stack([-wide[..., 1::2], wide[..., 0::2]], -1).flatten(-2)
    out.write(wide * cos.values().float() + turned * sin.values().float())


@kernel("TTT", "aclnnScatterNdUpdate")
def scatter_nd_update(var: Argument, indices: Argument, updates: Argument) -> None:
    """var[indices[i]] = updates[i]; indices outside are refused, as negative ones are skipped by nobody."""
    index = indices.values().long()
    if index.numel() and bool((index < 0).any()):
        raise ValueError("negative index")
    var.memory[tuple(index.unbind(-1))] = updates.values()
