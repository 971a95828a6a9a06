"""What the mixture-of-experts operators should return: routing, grouped products, sums of slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.formats import simulate
from hal.numerics.noise import envelope, matmul_noise
from hal.numerics.precision import Precision
from hal.numerics.quantisers import grid_step
from hal.numerics.rounding import accumulation, rounded, ulp
from hal.numerics.selection import Selection
from hal.numerics.sums import Sums

__all__ = ["Rows", "expert_rows", "router"]


def router(
    logits: Tensor,
    bias: Tensor | None,
    expert_ids: Tensor,
    top_k: int,
    scoring: str,
    scale: float,
    precision: Precision,
) -> tuple[Sums, Selection]:
    """The weights that belong to the experts a kernel chose, and the scores it had to choose them by."""
    z = logits.double()
    if scoring == "softmax":
        a = z.softmax(-1)
        relative = precision.unit * (2 + z.abs() + z.abs().amax(-1, keepdim=True)) + accumulation(z.shape[-1])
    else:
        a = torch.sigmoid(z) if scoring == "sigmoid" else F.softplus(z, threshold=700).sqrt()
        relative = precision.unit * (2 + z.abs())
    key = a if bias is None else a + bias.double()
    selection = Selection(key, ((a * relative) ** 2 + (precision.unit * key) ** 2).sqrt(), top_k)
    ids = expert_ids.long().clamp(0, z.shape[-1] - 1)
    chosen, own = a.gather(-1, ids), relative.gather(-1, ids)
    share = chosen / chosen.sum(-1, keepdim=True)
    weights = share * scale
    common = ((share * own) ** 2).sum(-1, keepdim=True) + (2 * precision.unit) ** 2
    noise = weights * (own**2 + common).sqrt()
    return Sums(weights, noise, torch.float32, one_sided=noise), selection


@dataclass(frozen=True)
class Rows:
    """Rows that experts return: exact on stored inputs, and what rounding may do to them."""

    reference: Tensor
    noise: Tensor
    one_sided: Tensor
    jump: Tensor


def expert_rows(
    x: Tensor,
    factor: Tensor,
    w13: Tensor,
    w2: Tensor,
    clamp: float,
    activation: str,
    dtype: torch.dtype,
    precision: Precision,
) -> Rows:
    """One expert: x [rows, hidden] as it was dispatched, factor [rows], w13 [2 inner, hidden], w2 [outputs, inner].

    Two products with a clamped SwiGLU, a rounding to `dtype` and a requantisation between them. The reference makes
    the same roundings of the exact intermediate; a kernel's intermediate differs by the first product's noise, which
    now and then flips a rounding (`rounded`). `jump` allows one such flip in every element, however rare it is,
    and two where the first product or another intermediate is rounded otherwise, which makes them frequent.
    """
    x, w13, w2, factor = x.double(), w13.double(), w2.double(), factor.double()[:, None]
    hidden = x @ w13.mT
    hidden_noise = matmul_noise(x, w13, hidden, precision) + precision.relative("hidden") * hidden.abs()
    (gate, up), (gate_noise, up_noise) = hidden.chunk(2, -1), hidden_noise.chunk(2, -1)
    low, near = gate.clamp_max(clamp), up.clamp(-clamp, clamp)
    sigmoid = torch.sigmoid(low)
    slope = sigmoid * (1 + low * (1 - sigmoid))
    inner = low * sigmoid * near * factor
    noise = (slope * near * factor * gate_noise * (gate < clamp)) ** 2
    noise = noise + (low * sigmoid * factor * up_noise * (up.abs() < clamp)) ** 2
    noise = (noise + (precision.unit * (2 + low.abs()) * inner) ** 2).sqrt()

    step = ulp(inner, dtype)
    if precision.inner:
        step, stored = torch.zeros_like(step), inner
    else:
        stored, noise = inner.to(dtype).double(), rounded(noise, step)
    if activation != "none":
        step = torch.maximum(grid_step(stored, activation), step)
        stored, noise = simulate(stored, activation), rounded(noise, step)
    out = stored @ w2.mT
    size = precision.sums(w2.shape[-1], envelope(stored, w2), out)
    flips = 2 if precision.inner or precision.relative("hidden") else 1
    largest = flips * (step.float() ** 8 @ (w2.float() ** 8).mT).double() ** 0.125
    return Rows(out, (size**2 + envelope(noise, w2) ** 2).sqrt(), size, largest)
