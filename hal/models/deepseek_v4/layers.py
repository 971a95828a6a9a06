"""The plain-torch pieces of DeepSeek-V4: linear maps, RMS norms and manifold-constrained hyper-connections (mHC).

Formulas follow the official inference code (`inference/model.py`) and the DeepSeek-V4 technical report, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hal.formats import PackedWeight

Operator = Callable[..., Any]
"""A bound contract: tensors in the order of its signature; attributes are already applied."""

Operators = Mapping[str, Operator]


def wide(x: Tensor) -> Tensor:
    """`x` in the dtype of sums and softmaxes: float32, or float64 where the model runs in float64."""
    return x if x.dtype == torch.float64 else x.float()


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """`1 / sqrt(mean(x²) + eps)` over the last dimension, kept; reads `x` once, stores nothing of its size."""
    return torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps)


def frozen(weight: Tensor) -> nn.Parameter:
    """A parameter that asks for no gradient until `requires_grad_` says so."""
    return nn.Parameter(weight, requires_grad=False)


class Linear(nn.Module):
    """`y = x Wᵀ`, through a `quant.matmul` operator where the weight is packed."""

    def __init__(self, weight: Tensor | PackedWeight, operator: Operator | None = None) -> None:
        super().__init__()
        self.weight = frozen(weight) if isinstance(weight, Tensor) else weight
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, Tensor):
            return F.linear(x, self.weight)
        assert self.operator is not None
        y: Tensor = self.operator(x, self.weight)
        return y


class Norm(nn.Module):
    """RMS norm: computed in float32 with a float32 weight, rounded once to the input's dtype."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = frozen(weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        full = wide(x)
        return (self.weight * full * inverse_rms(full, self.eps)).to(x.dtype)


class HyperConnection(nn.Module):
    """mHC around one sub-layer: collapse the streams before it, expand and mix them after it.

    `fn [(2+n)n, n*hidden]`, `base [(2+n)n]`, `scale [3]`, all float32; `n` streams.
    """

    def __init__(self, operators: Operators, fn: Tensor, base: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.fn, self.base, self.scale = frozen(fn), frozen(base), frozen(scale)
        self.pre, self.post = operators["mhc.pre"], operators["mhc.post"]

    def forward(self, streams: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """`streams [tokens, n, hidden]` through `sublayer`, which maps `[tokens, hidden]` to the same."""
        y, post, comb = self.pre(streams, self.fn, self.scale, self.base)
        out: Tensor = self.post(sublayer(y), streams, post, comb)
        return out


class HyperHead(nn.Module):
    """The last collapse of the streams, before the final norm: `fn [n, n*hidden]`, `base [n]`, `scale [1]`, float32."""

    def __init__(self, fn: Tensor, base: Tensor, scale: Tensor, *, norm_eps: float, eps: float) -> None:
        super().__init__()
        self.fn, self.base, self.scale = frozen(fn), frozen(base), frozen(scale)
        self.norm_eps, self.eps = norm_eps, eps

    def forward(self, streams: Tensor) -> Tensor:
        """`streams [tokens, n, hidden]` -> `[tokens, hidden]`; the weightless RMS norm scales after the product."""
        full = wide(streams)
        flat = full.flatten(-2)
        mixes = F.linear(flat, self.fn) * inverse_rms(flat, self.norm_eps)
        pre = torch.sigmoid(mixes * self.scale + self.base) + self.eps
        return (pre.unsqueeze(-2) @ full).squeeze(-2).to(streams.dtype)
