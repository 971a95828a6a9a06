"""DeepSeek-V4's mixture of experts: a gate (top-k, or by token id in the first blocks), routed experts, one shared
expert.

DeepSeek-V4 technical report, section 2.1; official `inference/model.py` (`Gate`, `Expert`, `MoE`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hal import overlap
from hal.formats import PackedWeight
from hal.models.deepseek_v4.layers import Linear, Operators, frozen, wide
from hal.models.deepseek_v4.weights import Weights, plain_scheme


class Gate(nn.Module):
    """Routing weights and expert ids of every token.

    `bias` only moves the choice: no gradient reaches it, a training loop balances the experts with it.
    """

    def __init__(self, weights: Weights, prefix: str, operators: Operators, *, hashed: bool) -> None:
        super().__init__()
        self.weight = frozen(weights.full(f"{prefix}weight"))
        self.bias: Tensor | None
        self.tid2eid: Tensor | None
        self.register_buffer("bias", None if hashed else weights.full(f"{prefix}bias"))
        self.register_buffer("tid2eid", weights.ids(f"{prefix}tid2eid") if hashed else None)
        self.route = operators["route.hash" if hashed else "route.top_k"]

    def forward(self, x: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`x [tokens, hidden]` -> weights and expert ids, both `[tokens, top_k]`. Scores are computed in float32."""
        logits = F.linear(wide(x), self.weight)
        ids = None if self.tid2eid is None else token_ids
        weights, experts = self.route(logits, self.bias, ids, self.tid2eid)
        return weights, experts


class SharedExpert(nn.Module):
    """The expert every token visits: clamped SwiGLU without a routing weight."""

    def __init__(self, weights: Weights, prefix: str, operators: Operators) -> None:
        super().__init__()
        self.clamp = weights.config.swiglu_limit
        self.w1, self.w3, self.w2 = (
            Linear(weights.linear(prefix + name), operators.get(f"linear.{name}")) for name in ("w1", "w3", "w2")
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = wide(self.w1(x)).clamp(max=self.clamp)
        up = wide(self.w3(x)).clamp(-self.clamp, self.clamp)
        y: Tensor = self.w2((F.silu(gate) * up).to(x.dtype))
        return y


class RoutedExperts(nn.Module):
    """Routed experts, stacked: `w13 [experts, 2*inter, hidden]` (gate rows first), `w2 [experts, hidden, inter]`."""

    def __init__(self, w13: Tensor | PackedWeight, w2: Tensor | PackedWeight) -> None:
        super().__init__()
        self.w13 = frozen(w13) if isinstance(w13, Tensor) else w13
        self.w2 = frozen(w2) if isinstance(w2, Tensor) else w2

    def packed(self) -> tuple[PackedWeight, PackedWeight]:
        """Both stacks as the operator takes them; a plain stack keeps its autograd graph."""
        return _pack(self.w13), _pack(self.w2)


def _pack(weight: Tensor | PackedWeight) -> PackedWeight:
    if isinstance(weight, PackedWeight):
        return weight
    return PackedWeight(weight, None, plain_scheme(weight.dtype), tuple(weight.shape))


class MoE(nn.Module):
    """Routed experts through `moe.ffn`, the shared expert as its residual."""

    streams = 0
    """Side streams: the shared expert runs beside the gate."""

    def __init__(self, weights: Weights, prefix: str, operators: Operators, layer: int) -> None:
        super().__init__()
        self.gate = Gate(weights, f"{prefix}gate.", operators, hashed=weights.config.is_hash(layer))
        self.experts = RoutedExperts(*weights.experts(f"{prefix}experts."))
        self.shared_experts = SharedExpert(weights, f"{prefix}shared_experts.", operators)
        self.ffn = operators["moe.ffn"]

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """`x [tokens, hidden]`, `token_ids [tokens]` int64 -> `[tokens, hidden]`."""
        (weights, experts), shared = overlap(
            x.device, self.streams, lambda: self.gate(x, token_ids), lambda: self.shared_experts(x)
        )
        y: Tensor = self.ffn(x, experts, weights, *self.experts.packed(), shared, None)
        return y
