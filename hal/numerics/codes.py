"""Judge values that were rounded to a coarse grid: quantised codes, cache rows, and things that must be equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.numerics.rules import DEFAULT, Rules
from hal.numerics.statistics import first, lean
from hal.numerics.verdict import Verdict

__all__ = ["Exact", "Grid", "judge_exact", "judge_grid"]


@dataclass(frozen=True)
class Grid:
    """Values on a quantiser's grid.

    exact: float64, the values before the quantiser.
    rounded: float64, what the quantiser makes of them.
    noise: float64, broadcastable: how much an honest kernel's values may differ before the quantiser (standard
        deviation); zero where they are exact.
    step: float64, the local spacing of the grid, or None where it is not known; with it, differing codes are counted.
    moving: the grid's scale is no power of two: it moves with the noise of the largest value, and every point with it.
    """

    exact: Tensor
    rounded: Tensor
    noise: Tensor
    step: Tensor | None = None
    moving: bool = False

    def slack(self, rules: Rules = DEFAULT) -> Tensor:
        """How much farther than the nearest grid point a value may lie from the exact one, float64.

        The nearest point to x' with |x' - x| <= d is no farther from x than the nearest one to x, plus 2d.
        """
        return 2 * rules.noise * self.noise.double().expand_as(self.exact) + 1e-12 * self.exact.double().abs()


@dataclass(frozen=True)
class Exact:
    """Values that must be equal bit for bit (scales, indices, counts); NaN equals NaN."""

    values: Tensor


def judge_grid(got: Tensor, want: Grid, rules: Rules = DEFAULT, output: str = "") -> Verdict:
    """Judge decoded values `got`: each must be the grid point nearest to some value within the noise, rarely another
    one than the reference's, no farther from the exact values on the whole, and not leaning to one side."""
    exact, rounded = want.exact.double(), want.rounded.double()
    if got.shape != exact.shape:
        return Verdict(
            False, "shape", output, note=f"got shape {list(got.shape)}, wanted {list(exact.shape)}", margin=2.0
        )
    if not exact.numel():
        return Verdict(True, "codes", output, note="empty")
    y = got.detach().to(exact.device).double()
    noise = want.noise.double().expand_as(exact)
    own = (rounded - exact).abs()
    slack = want.slack(rules)
    wrong = (y != rounded) & ~(y.isnan() & rounded.isnan())
    error = torch.where(wrong, (y - exact).abs(), own).nan_to_num(torch.inf, torch.inf)
    margins = torch.where(wrong, (error - own) / slack.clamp_min(1e-300), 0.0)
    count, allowed = int(wrong.sum()), torch.inf
    if want.step is not None:
        midpoint = (want.step.double() / 2 - own).clamp_min(0)
        expected = float((0.5 * torch.erfc(midpoint / (2**0.5 * noise).clamp_min(1e-300))).where(noise > 0, 0.0).sum())
        allowed = expected + rules.rare * expected**0.5 + (3 if expected else 0)
    rms_own = float(own[own.isfinite()].square().mean().sqrt())
    rms_got = float(torch.where(own.isfinite(), error, 0.0).square().mean().sqrt())
    normal = (rms_own**2 + float(noise.square().mean())) ** 0.5
    ratio = rms_got / normal if normal else float(rms_got > 0) * torch.inf
    limit = rules.ratio * (1 + 4 / exact.numel() ** 0.5)
    unit = (own**2 + noise**2).sqrt()
    moved = torch.where(wrong & (unit > 0), (y - rounded) / unit.clamp_min(1e-300) * exact.sign(), 0.0)
    bias, z = lean(moved, exact.isfinite() & (unit > 0), exact)
    # A point of the grid is never nearer than the nearest one; a row in 64 may have taken another scale.
    off_grid = 0 if want.moving else int((error < own * (1 - 1e-6)).sum())
    scores = {
        "grid": off_grid / max(exact.numel() / 64, 1),
        "codes": max(float(margins.max()), count / allowed if allowed else float(count > 0) * 2),
        "ratio": ratio / limit,
        "bias": min(abs(z) / rules.z, abs(bias) / rules.bias),
    }
    failed = [rule for rule, score in scores.items() if not score <= 1]
    rule = failed[0] if failed else max(scores, key=lambda name: scores[name])
    notes = [f"{off_grid} of {exact.numel()} values are not on the quantiser's grid"] if "grid" in failed else []
    notes += [f"{count} of {exact.numel()} codes differ"] if count else []
    place = first(margins == margins.max())
    return Verdict(
        not failed,
        rule,
        output,
        coordinate=place,
        got=float(y[place]),
        wanted=float(rounded[place]),
        bound=float((own + slack)[place]),
        margin=max(scores.values()),
        ratio=ratio,
        bias=bias,
        z=z,
        note=", ".join(notes),
    )


def judge_exact(got: Tensor, want: Exact, output: str = "") -> Verdict:
    """Judge values that leave no freedom."""
    values = want.values
    if got.shape != values.shape:
        return Verdict(
            False, "shape", output, note=f"got shape {list(got.shape)}, wanted {list(values.shape)}", margin=2.0
        )
    y, w = got.detach().to(values.device), values
    y, w = (y.double(), w.double()) if y.is_floating_point() or w.is_floating_point() else (y.long(), w.long())
    wrong = (y != w) & ~((y != y) & (w != w))
    count = int(wrong.sum())
    if not count:
        return Verdict(True, "exact", output)
    place = first(wrong)
    return Verdict(
        False,
        "exact",
        output,
        coordinate=place,
        got=float(y[place]),
        wanted=float(w[place]),
        margin=2.0,
        note=f"{count} of {wrong.numel()} differ",
    )
