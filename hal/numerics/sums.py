"""Judge a floating output: a bound per element, a root mean square, a bias, and equal infinities and NaNs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hal.numerics.rounding import storage_noise, ulp
from hal.numerics.rules import DEFAULT, Rules
from hal.numerics.statistics import first, lean
from hal.numerics.verdict import Verdict

__all__ = ["Sums", "judge_sums"]


@dataclass(frozen=True)
class Sums:
    """What a floating output should be.

    reference: float64, exact on the stored inputs.
    noise: float64, broadcastable: the standard deviation of an honest kernel's error before it stores the element.
    dtype: the dtype the output is stored in.
    baseline: an honest computation at the declared precision, in `dtype`; None: the noise alone says what is normal.
    one_sided: float64 or None: the part of the noise that may lean to one side, because accumulators may truncate.
    jump: float64 or None: an error that one rare discrete event may add (a code of a requantised operand flips).
    """

    reference: Tensor
    noise: Tensor
    dtype: torch.dtype
    baseline: Tensor | None = None
    one_sided: Tensor | None = None
    jump: Tensor | None = None

    def bound(self, rules: Rules = DEFAULT) -> Tensor:
        """The largest error that each element may have, float64."""
        noise = rules.noise * self.noise.double().expand_as(self.reference)
        allowance = noise if self.jump is None else torch.maximum(noise, self.jump)
        return rules.ulps * ulp(self.reference.double(), self.dtype) + allowance


def judge_sums(got: Tensor, want: Sums, rules: Rules = DEFAULT, output: str = "") -> Verdict:
    """Judge `got` of the reference's shape. Never raises on bad values; they are what it reports."""
    r = want.reference.double()
    if got.shape != r.shape:
        return Verdict(False, "shape", output, note=f"got shape {list(got.shape)}, wanted {list(r.shape)}", margin=2.0)
    if got.dtype != want.dtype:
        return Verdict(False, "dtype", output, note=f"got {got.dtype}, wanted {want.dtype}", margin=2.0)
    if not r.numel():
        return Verdict(True, "bound", output, note="empty")
    y = got.detach().to(r.device).double()
    spacing = ulp(r, want.dtype)
    noise = want.noise.double().expand_as(r)
    bound = want.bound(rules)
    finite = r.isfinite()
    # Where the exact value lies at the end of the dtype's range both answers are right.
    edge = finite & (r.abs() + bound > torch.finfo(want.dtype).max) & y.isinf() & (y.sign() == r.sign())
    same = torch.where(finite, y.isfinite() | edge, torch.where(r.isnan(), y.isnan(), y == r))
    if not bool(same.all()):
        found = Verdict(False, "mask", output, margin=torch.inf, note=_count(~same))
        return _at(first(~same), y, r, bound, spacing, found)

    use = finite & ~edge
    error = torch.where(use, y - r, 0.0)
    margins = torch.where(use, error.abs() / bound, 0.0)
    worst = first(margins == margins.max())
    unit = (storage_noise(r, want.dtype) ** 2 + noise**2).sqrt()
    live = use & ((r != 0) | (noise > 0))
    nearest = torch.where(use, r.to(want.dtype).double(), 0.0).nan_to_num(posinf=0.0, neginf=0.0)
    ratio, limit = _ratio(error / unit, live, want, r, nearest, unit, rules)
    # Rounding to nearest may itself lean on few or repeated values, so the lean is counted from there.
    bias, z = lean((y - nearest) / unit * r.sign(), live, r)
    tolerated = rules.bias
    if want.one_sided is not None:
        tolerated += float((want.one_sided / unit).expand_as(r)[live].mean()) if bool(live.any()) else 0.0
    leaning = min(abs(z) / rules.z, abs(bias) / tolerated)
    scores = {"bound": float(margins.max()), "ratio": ratio / limit, "bias": leaning}
    failed = [rule for rule, score in scores.items() if not score <= 1]
    rule = failed[0] if failed else max(scores, key=lambda name: scores[name])
    note = "" if len(failed) < 2 else f"also {' and '.join(failed[1:])}"
    beyond = (error.abs() - rules.ulps * spacing).clamp_min(0)
    if want.jump is not None:
        beyond = torch.where(beyond <= want.jump, 0.0, beyond)
    sigmas = float((beyond / noise.clamp_min(1e-300)).max())
    found = Verdict(
        not failed,
        rule,
        output,
        margin=max(scores.values()),
        ratio=ratio,
        limit=limit,
        sigmas=sigmas,
        bias=bias,
        tolerated=tolerated,
        z=z,
        note=note,
    )
    return _at(worst, y, r, bound, spacing, found)


def _ratio(
    e: Tensor, live: Tensor, want: Sums, r: Tensor, nearest: Tensor, unit: Tensor, rules: Rules
) -> tuple[float, float]:
    """Root mean square error over the baseline's, and its limit, which is wider for few elements."""
    n = int(live.sum())
    if not n:
        return 0.0, rules.ratio
    normal = max(rules.floor, _rms((nearest - r) / unit, live))
    if want.baseline is not None:
        normal = max(normal, _rms((want.baseline.double() - r) / unit, live))
    return _rms(e, live) / normal, rules.ratio * (1 + 4 / n**0.5)


def _rms(e: Tensor, live: Tensor) -> float:
    return float(e[live].square().mean().sqrt())


def _count(mask: Tensor) -> str:
    return f"{int(mask.sum())} of {mask.numel()} elements are finite, infinite or NaN where they should not be"


def _at(place: tuple[int, ...], y: Tensor, r: Tensor, bound: Tensor, spacing: Tensor, found: Verdict) -> Verdict:
    off = float((y[place] - r[place]).abs() / spacing[place])
    return replace(
        found, coordinate=place, got=float(y[place]), wanted=float(r[place]), bound=float(bound[place]), ulps=off
    )
