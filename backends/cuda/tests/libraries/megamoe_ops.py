"""Mega MoE among threads, written from its documentation: a buffer that all processes see, and one call.

Sources: `deep_gemm/mega/__init__.py` (the buffer's views, the order of weights and scales), `tests/test_mega_moe.py`
(packed scales of 32 channels, routing weights before the second product).
"""

from __future__ import annotations

from typing import Any

import torch
from deep_gemm_ops import ARCH, _values, want
from torch import Tensor
from torch.nn import functional as F

from hal.formats import simulate

Pair = tuple[Tensor, Tensor]


class SymmBuffer:
    """Views of a process's part. `group` has `rank()`, `size()` and, instead of a network, `exchange(value)`."""

    def __init__(self, group: Any, experts: int, most: int, top_k: int, hidden: int, inner: int) -> None:
        want(ARCH[0] == 10, "this chip")
        want(hidden % 128 == 0 and inner % 128 == 0, f"{hidden} and {inner} channels")
        self.group, self.experts, self.inner = group, experts, inner
        self.x = torch.zeros(most, hidden, dtype=torch.uint8).view(torch.float8_e4m3fn)
        self.x_sf = torch.zeros(hidden // 128, most, dtype=torch.int32).T
        self.topk_idx = torch.full((most, top_k), experts, dtype=torch.int64)  # stale ids show
        self.topk_weights = torch.full((most, top_k), torch.nan)


def transform(l1: Pair, l2: Pair) -> tuple[Pair, Pair]:
    """Gate and up rows in turns of 8; scales of 128 rows as 32 rows of 4."""
    turned = tuple(_turns(part, True) for part in l1)
    return (turned[0], _fours(turned[1], True)), (l2[0], _fours(l2[1], True))


def _turns(t: Tensor, there: bool) -> Tensor:
    groups, rows, *rest = t.shape
    split = (2, rows // 16, 8) if there else (rows // 16, 2, 8)
    return torch.empty_like(t).copy_(t.reshape(groups, *split, *rest).transpose(1, 2).reshape(t.shape))


def _fours(sf: Tensor, there: bool) -> Tensor:
    want(sf.dtype == torch.int32 and sf.ndim == 3 and sf.shape[1] % 128 == 0, f"scales {sf.dtype} {tuple(sf.shape)}")
    groups, rows, columns = sf.shape
    split = (4, 32) if there else (32, 4)
    moved = sf.reshape(groups, rows // 128, *split, columns).transpose(2, 3).reshape(sf.shape)
    return torch.empty_like(sf).copy_(moved)


def _weight(pair: Pair, turned: bool) -> Tensor:
    """What transformed codes and scales stand for."""
    codes, sf = pair
    want(codes.dtype == torch.int8 and codes.is_contiguous(), f"weights of {codes.dtype}")
    want(sf.stride(-2) == 1, "scales of weights that are not MN-major")
    sf = _fours(sf, False)
    if turned:
        codes, sf = _turns(codes, False), _turns(sf, False)
    exponents = sf.contiguous().unsqueeze(-1).view(torch.uint8).flatten(-2)
    values = _values(codes)
    want(values.shape[-1] == 32 * exponents.shape[-1], "scales of other weights")
    return values * torch.exp2(exponents.double() - 127).repeat_interleave(32, dim=-1)


def mega_moe(y: Tensor, l1: Pair, l2: Pair, buffer: SymmBuffer, recipe: Any, activation: str, clamp: float) -> None:
    """y[tokens, hidden]: each process's tokens through the experts of all."""
    tokens, group = len(y), buffer.group
    want(y.dtype == torch.bfloat16 and y.is_contiguous() and y.shape[1] == buffer.x.shape[1], f"y of {y.dtype}")
    want(tuple(recipe) == (1, 1, 32) and activation == "swiglu", f"recipe {recipe}, {activation}")
    bytes_ = buffer.x_sf[:tokens].contiguous().unsqueeze(-1).view(torch.uint8).flatten(-2)
    x = buffer.x[:tokens].double() * torch.exp2(bytes_.double() - 127).repeat_interleave(32, dim=-1)
    ids, factors = buffer.topk_idx[:tokens], buffer.topk_weights[:tokens]
    want(bool((ids < buffer.experts).all()), "an expert that is not there")
    w13, w2 = _weight(l1, True), _weight(l2, False)
    want(w13.shape[1] == 2 * w2.shape[2] == 2 * buffer.inner, "weights of other sizes")
    local = buffer.experts // group.size()
    partial = []
    for their_x, their_ids, their_factors in group.exchange((x, ids, factors)):
        slots = torch.zeros(*their_ids.shape, y.shape[1], dtype=torch.bfloat16)
        for expert in range(local):
            token, slot = (their_ids == group.rank() * local + expert).nonzero(as_tuple=True)
            gate, up = (their_x[token] @ w13[expert].T).float().chunk(2, dim=-1)
            inner = F.silu(gate.clamp(max=clamp)) * up.clamp(-clamp, clamp) * their_factors[token, slot, None]
            inner = simulate(inner.bfloat16().float(), "e4m3_32")
            slots[token, slot] = (inner.double() @ w2[expert].T).to(torch.bfloat16)
        partial.append(slots)
    total = sum(one[group.rank()].float() for one in group.exchange(partial))
    assert isinstance(total, Tensor)
    y.copy_(total.sum(1))
