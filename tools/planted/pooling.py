"""The compressors' softmax pooling: 8 slots in two halves (CSA) and 128 slots (HCA), per channel, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from hal.numerics import Sums
from hal.numerics.noise import pool_noise
from hal.numerics.precision import Precision
from tools.planted.trial import Trial, draw

_ENTRIES, _DIM = 24, 512


def direct(values: Tensor, scores: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scores.to(dtype).softmax(1).nan_to_num(0.0) * values.to(dtype)).sum(1).float()


def divided_last(values: Tensor, scores: Tensor, base2: bool = False, weights: torch.dtype = torch.float32) -> Tensor:
    top = scores.amax(1, keepdim=True)
    p = ((scores - top) * 1.4426950408889634).exp2() if base2 else (scores - top).exp()
    p = p.to(weights).float()
    return (p * values).sum(1) / p.sum(1)


def online(values: Tensor, scores: Tensor, reverse: bool = False) -> Tensor:
    """The (max, sum, accumulator) form that keeps no raw rows."""
    top = torch.full_like(values[:, 0], -torch.inf)
    total, out = torch.zeros_like(top), torch.zeros_like(top)
    slots = range(values.shape[1])
    for j in reversed(slots) if reverse else slots:
        new = torch.maximum(top, scores[:, j])
        safe = new.masked_fill(new == -torch.inf, 0.0)
        shrink, p = (top - safe).exp(), (scores[:, j] - safe).exp()
        total, out, top = total * shrink + p, out * shrink + p * values[:, j], new
    return out / total


def trial(ratio: int, data: str, seed: int) -> Trial:
    """Tokens' projected values and scores, cut into windows; entry 0 of CSA has no previous window."""
    rng = torch.Generator().manual_seed(seed)
    overlap = ratio == 4
    width = _DIM * (1 + overlap)
    kv = draw(data, (_ENTRIES, ratio, width), rng)
    raw = torch.randn(_ENTRIES, ratio, width, generator=rng) * 2
    ape = torch.randn(ratio, width, generator=rng)
    score = raw + ape

    def slots(x: Tensor, empty: float, swap: bool = False) -> Tensor:
        if not overlap:
            return x
        first, second = x[..., :_DIM], x[..., _DIM:]
        if swap:
            first, second = second, first
        previous = torch.cat([torch.full_like(first[:1], empty), first[:-1]])
        return torch.cat([previous, second], 1)

    values, scores = slots(kv, 0.0), slots(score, -torch.inf)
    weights = scores.double().softmax(1)
    exact = (weights * values).sum(1)
    envelope = (((2 * scores.double()).softmax(1) * values.double() ** 2).sum(1)).sqrt()
    size = (weights * scores.nan_to_num(neginf=0.0).abs()).sum(1)
    noise = pool_noise(envelope, size, values.shape[1], Precision())
    base = divided_last(values, scores)
    honest = {
        "divided last": base,
        "softmax first": direct(values, scores),
        "powers of two": divided_last(values, scores, base2=True),
        "running": online(values, scores),
        "running, last first": online(values, scores, reverse=True),
        "float64": direct(values, scores, torch.float64),
    }
    one = base.clone()
    one[3, 7] += 0.05 * (scores.double().softmax(1) * values).norm(dim=1)[3, 7].float()
    faulty = {
        "ape added twice": divided_last(values, slots(score + ape, -torch.inf)),
        "ape one row off": divided_last(values, slots(raw + ape.roll(1, 0), -torch.inf)),
        "last slot dropped": divided_last(values[:, :-1], scores[:, :-1]),
        "weights in bf16": divided_last(values, scores, weights=torch.bfloat16),
        "values in bf16": divided_last(values.bfloat16().float(), scores),
        "scores in bf16": divided_last(values, scores.bfloat16().float()),
        "one softmax for all channels": divided_last(values, scores.mean(-1, keepdim=True).expand_as(scores)),
        "one element 5 % off": one,
        "last entry repeats the one before": torch.cat([base[:-1], base[-2:-1]]),
    }
    if overlap:
        faulty["halves swapped"] = divided_last(slots(kv, 0.0, swap=True), slots(score, -torch.inf, swap=True))
        faulty["first window sees zeros"] = divided_last(values, slots(score, 0.0))
        faulty["stale rows of another request"] = torch.cat(
            [divided_last(values.roll(1, 0), scores.roll(1, 0))[:1], base[1:]]
        )
    want = Sums(exact, noise, torch.float32, base, noise)
    depth = values.shape[1]
    return Trial("pooling", f"ratio {ratio}", data, (want,), depth, (base,), _each(honest), _each(faulty))


def _each(outputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    return {name: (y,) for name, y in outputs.items()}
