"""Choices by score: experts of the router (256 and 384) and compressed entries of the lightning indexer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hal.numerics import Selection, Sums
from hal.numerics.experts import router
from hal.numerics.noise import index_scores_noise
from hal.numerics.precision import Precision
from tools.planted.trial import Outputs, Trial, draw

_TOKENS, _TOP, _SCALE = 96, 6, 1.5
_F32 = torch.float32
Activation = Callable[[Tensor], Tensor]

SCORING: dict[str, Activation] = {
    "sqrtsoftplus": lambda z: F.softplus(z).sqrt(),
    "sigmoid": torch.sigmoid,
    "softmax": lambda z: z.softmax(-1),
}


def route(
    logits: Tensor, bias: Tensor, activation: Activation, top: int = _TOP, weigh_bias: bool = False, whole: bool = False
) -> Outputs:
    a = activation(logits)
    ids = (a + bias).topk(top, -1).indices
    chosen = (a + bias if weigh_bias else a).gather(1, ids)
    total = a.sum(-1, keepdim=True) if whole else chosen.sum(-1, keepdim=True)
    return (chosen / total * _SCALE).float(), ids.int()


def routing(scoring: str, experts: int, data: str, seed: int) -> Trial:
    rng = torch.Generator().manual_seed(seed)
    logits = draw(data, (_TOKENS, experts), rng).clamp(-30, 30)
    logits[:8] = (logits[:8] * 4).round() / 4  # exact ties
    bias = 0.1 * torch.randn(experts, generator=rng)
    bias[: experts // 2] = 0.0
    activation = SCORING[scoring]
    forms: dict[str, Activation] = {"as torch has it": activation, "float64": lambda z: activation(z.double())}
    if scoring == "sqrtsoftplus":
        forms["log1p of exp(-|z|)"] = lambda z: (z.clamp_min(0) + (-z.abs()).exp().log1p()).sqrt()
        forms["powers of two"] = lambda z: (z.clamp_min(0) + (-z.abs() * 1.4426950408889634).exp2().log1p()).sqrt()
    elif scoring == "sigmoid":
        forms["by exp"] = lambda z: 1 / (1 + (-z).exp())
    else:
        forms["unshifted"] = lambda z: z.exp() / z.exp().sum(-1, keepdim=True)
        forms["shifted"] = lambda z: (
            (z - z.amax(-1, keepdim=True)).exp() / (z - z.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
        )
    last = activation(logits) + bias
    flipped = last.flip(-1).topk(_TOP, -1).indices
    ids = (experts - 1 - flipped).int()  # ties go to the highest expert
    a = activation(logits).gather(1, ids.long())
    clean = route(logits, bias, activation)
    weights, chosen = clean
    twice = chosen.clone()
    twice[5, -1] = twice[5, 0]
    one = weights.clone()
    one[7, 2] *= 1.001
    faulty = {
        "bias ignored": route(logits, torch.zeros_like(bias), activation),
        "bias in the weights": route(logits, bias, activation, weigh_bias=True),
        "normalised over all experts": route(logits, bias, activation, whole=True),
        "scale forgotten": (weights / _SCALE, chosen),
        "logits in bf16": route(logits.bfloat16().float(), bias, activation),
        "scores in bf16": route(logits, bias, lambda z: activation(z).bfloat16().float()),
        "weights in bf16": (weights.bfloat16().float(), chosen),
        "weights of the neighbouring slot": (weights.roll(1, -1), chosen),
        "an expert twice": (weights, twice),
        "experts one off": (weights, (chosen + 1) % experts),
        "padding where experts are": (weights, torch.cat([chosen[:, :-1], torch.full_like(chosen[:, -1:], -1)], 1)),
        "one weight 0.1 % off": (one, chosen),
    }
    if scoring == "sqrtsoftplus":
        faulty["square root forgotten"] = route(logits, bias, F.softplus)
        faulty["sigmoid instead"] = route(logits, bias, torch.sigmoid)
    honest = {name: route(logits, bias, form) for name, form in forms.items()}
    honest["ties to the highest expert"] = (a / a.sum(-1, keepdim=True) * _SCALE, ids)

    def wants(outputs: Outputs) -> tuple[Sums | Selection, ...]:
        return router(logits, bias, outputs[1], _TOP, scoring, _SCALE, Precision())

    return Trial("routing", f"{scoring}, {experts} experts", data, wants, experts, clean, honest, faulty)


def index_scores(q: Tensor, keys: Tensor, weights: Tensor, scale: float, dtype: torch.dtype = _F32) -> Tensor:
    dots = (q.to(dtype) @ keys.to(dtype).mT).relu()
    return (dots * (weights.to(dtype) * scale)[..., None]).sum(1)


def indexer(data: str, heads: int, score_dtype: torch.dtype, seed: int) -> Trial:
    """Index scores, and the 512 best of up to 1,400 visible entries."""
    rng = torch.Generator().manual_seed(seed)
    tokens, entries, dim, top = 16, 1400, 128, 512
    q = draw(data, (tokens, heads, dim), rng).bfloat16().float()
    keys = draw("normal", (entries, dim), rng).bfloat16().float()
    keys[700:710] = keys[690:700]  # equal keys tie exactly
    weights = torch.randn(tokens, heads, generator=rng).bfloat16().float()
    scale = dim**-0.5 * heads**-0.5
    visible = torch.arange(entries) < torch.linspace(300, entries, tokens).long()[:, None]
    precision = Precision(scores=str(score_dtype).removeprefix("torch."))
    exact = index_scores(q, keys, weights, scale, torch.float64)
    noise = index_scores_noise(q, keys, weights, scale, precision)

    def chosen(scores: Tensor, seen: Tensor = visible) -> Tensor:
        ids = scores.masked_fill(~seen, -torch.inf).topk(top, -1).indices
        return torch.where(torch.arange(top) < seen.sum(-1, keepdim=True), ids, -1).int()

    def both(scores: Tensor) -> Outputs:
        return (scores, chosen(scores))

    base = index_scores(q, keys, weights, scale)
    dots = (q @ keys.mT).relu()
    in_order = torch.zeros(tokens, entries)
    for h in reversed(range(heads)):
        in_order = in_order + (weights[:, h, None] * scale) * dots[:, h]
    honest = {
        "float32": base,
        "heads one by one": in_order,
        "scale last": (dots * weights[..., None]).sum(1) * scale,
        "scale in q": index_scores(q * scale, keys, weights, 1.0),
        "float64": exact.float(),
        "channels in blocks": _blocks(q, keys, weights, scale),
    }
    if score_dtype == torch.bfloat16:
        low = (q @ keys.mT).bfloat16().relu()
        honest["bf16 products"] = (low * (weights * scale).bfloat16()[..., None]).float().sum(1).bfloat16().float()
    clean = both(base)
    ids = clean[1]
    late = torch.where(ids == -1, 0, ids)
    low_scores = index_scores(q, keys, weights, scale).bfloat16().float()
    faulty = {
        "no ReLU": both(((q @ keys.mT) * (weights * scale)[..., None]).sum(1)),
        "last head dropped": both(index_scores(q[:, :-1], keys, weights[:, :-1], scale)),
        "weights of the neighbouring head": both(index_scores(q, keys, weights.roll(1, -1), scale)),
        "last channel dropped": both(index_scores(q[..., :-1], keys[..., :-1], weights, scale)),
        "sees one entry of the future": (base, chosen(base, visible.roll(1, -1) | visible)),
        "misses the newest entry": (base, chosen(base, visible & visible.roll(-1, -1))),
        "padding reads row 0": (base, late),
    }
    if score_dtype == _F32:
        faulty["scores in bf16"] = both(low_scores)
    want = (Sums(exact, noise, _F32, base, noise), Selection(exact.masked_fill(~visible, -torch.inf), noise, top))
    name = f"{heads} index heads, scores in {precision.scores}"
    return Trial("indexer", name, data, want, dim, clean, {n: both(s) for n, s in honest.items()}, faulty)


def _blocks(q: Tensor, keys: Tensor, weights: Tensor, scale: float) -> Tensor:
    dots = sum(a @ b.mT for a, b in zip(q.split(32, -1), keys.split(32, -1), strict=True))
    assert isinstance(dots, Tensor)
    return (dots.relu() * (weights * scale)[..., None]).sum(1)
