"""A softmax over keys that are visited in parts, and its exact merge.

Each part gives the attention output over its own keys and the log-sum-exp of its scores; two parts merge into the
softmax over both (the identity FlashAttention's split-key decoding rests on). A row without keys has output 0 and a
log-sum-exp -inf.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Attention over some of the keys: `out[..., rows, head_dim]` and `lse[..., rows]`."""

    out: Tensor
    lse: Tensor


def attention(scores: Tensor, values: Tensor) -> Part:
    """Softmax over `scores[..., rows, keys]` (overwritten) and the weighted sum of `values[..., keys, head_dim]`."""
    top = scores.amax(-1)
    torch.softmax(scores, -1, out=scores)
    lse = top - scores.amax(-1).log()  # the largest probability is exp(0) / sum
    lonely = top == float("-inf")
    if lonely.any():
        scores.masked_fill_(lonely.unsqueeze(-1), 0.0)
        lse.masked_fill_(lonely, float("-inf"))
    return Part(scores @ values, lse)


def merge(left: Part, right: Part) -> Part:
    """The softmax over the keys of both parts; `left.out` is overwritten."""
    weight = torch.sigmoid(right.lse - left.lse).nan_to_num_(0.0)  # neither has keys: -inf - -inf
    left.out.lerp_(right.out, weight.unsqueeze(-1))
    return Part(left.out, torch.logaddexp(left.lse, right.lse))


def fold_sink(part: Part, sink: Tensor) -> Tensor:
    """The output with `exp(sink)` added to the denominator; `part.out` is overwritten and returned."""
    return part.out.mul_(torch.sigmoid(part.lse - sink).nan_to_num_(0.0).unsqueeze(-1))
