"""Judge every output of a trial by every rule, and say which faults are larger than rounding."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hal.numerics import Exact, Grid, Rules, Selection, Sums, Verdict, Want, judge
from hal.numerics.rounding import storage_noise
from tools.planted import foreign
from tools.planted.trial import Outputs, Trial, expected

SCALES = (1 / 64, 32.0)


@dataclass(frozen=True)
class Run:
    """One kernel of one trial. `real`: None for an honest kernel, else whether the fault exceeds rounding.

    `accepted` and `flipped` map a rule's name to its verdict and to whether the verdict changes with the data's scale;
    a rule that does not apply is missing.
    """

    family: str
    name: str
    data: str
    kernel: str
    real: bool | None
    accepted: dict[str, bool]
    flipped: dict[str, bool]
    verdicts: tuple[Verdict, ...]


def runs(trial: Trial, rules: Rules) -> list[Run]:
    usual = [_effect(outputs, None, trial) for outputs in trial.honest.values()]
    most = [max(effect[i] for effect in usual) for i in range(2)]
    found = []
    for kernel, outputs in trial.honest.items():
        found.append(_run(trial, kernel, outputs, None, rules))
    for kernel, outputs in trial.faulty.items():
        peak, spread, lean = _effect(outputs, trial.clean, trial)
        real = peak > 2 * most[0] or spread > most[1] or lean > rules.bias
        found.append(_run(trial, kernel, outputs, real, rules))
    return found


def _run(trial: Trial, kernel: str, outputs: Outputs, real: bool | None, rules: Rules) -> Run:
    wants = expected(trial, outputs)
    verdicts = tuple(judge(got, want, rules) for got, want in zip(outputs, wants, strict=True))
    accepted, flipped = {"hal": all(verdicts)}, {}
    sums = all(isinstance(want, Sums) and want.baseline is not None for want in wants)
    if sums:
        accepted |= {rule: _foreign(rule, outputs, wants, trial.depth) for rule in foreign.SOURCES}
    if not any(isinstance(want, Grid | Exact) for want in wants):
        flipped = dict.fromkeys(accepted, False)
        for scale in SCALES:
            scaled = [_scaled(i, trial, outputs[i], wants[i], scale) for i in range(len(wants))]
            ys, ws = tuple(y for y, _ in scaled), tuple(w for _, w in scaled)
            flipped["hal"] |= accepted["hal"] != all(judge(y, w, rules) for y, w in scaled)
            for rule in foreign.SOURCES if sums else ():
                flipped[rule] |= accepted[rule] != _foreign(rule, ys, ws, trial.depth)
    return Run(trial.family, trial.name, trial.data, kernel, real, accepted, flipped, verdicts)


def _foreign(rule: str, outputs: Outputs, wants: tuple[Want, ...], depth: int) -> bool:
    return all(foreign.passes(rule, y, w, depth) for y, w in zip(outputs, wants, strict=True) if isinstance(w, Sums))


def _scaled(i: int, trial: Trial, got: Tensor, want: Want, scale: float) -> tuple[Tensor, Want]:
    """What the same kernel returns for data multiplied by a power of two: every rounding scales with it."""
    if i in trial.fixed or isinstance(want, Grid | Exact):
        return got, want
    if isinstance(want, Selection):
        return got, replace(want, scores=want.scores * scale, noise=want.noise * scale)

    def times(x: Tensor) -> Tensor:
        return (x.double() * scale).to(x.dtype)

    parts = {f.name: times(x) for f in fields(want) if isinstance(x := getattr(want, f.name), Tensor)}
    return times(got), replace(want, **parts)  # type: ignore[arg-type]


def _effect(outputs: Outputs, clean: Outputs | None, trial: Trial) -> tuple[float, float, float]:
    """Largest, root mean square and mean signed difference from the clean kernel (from the reference where that is
    None), in units of each element's own rounding, over all outputs."""
    peak = spread = lean = 0.0
    for i, (y, want) in enumerate(zip(outputs, expected(trial, outputs), strict=True)):
        if isinstance(want, Sums):
            d = y.double() - (want.reference if clean is None else clean[i].double())
            d = d / (storage_noise(want.reference, want.dtype) ** 2 + want.noise**2).sqrt()
            d = torch.where(y == want.reference, 0.0, d)  # equal infinities
            if not d.isfinite().all():
                return torch.inf, torch.inf, torch.inf
            peak, spread = max(peak, float(d.abs().max())), max(spread, float(d.square().mean().sqrt()))
            lean = max(lean, abs(float((d * want.reference.sign()).nan_to_num().mean())))
        elif isinstance(want, Selection):
            own = trial.clean[i] if clean is None else clean[i]
            mine, theirs = y.sort(1).values, own.sort(1).values
            if bool(((mine[:, 1:] == mine[:, :-1]) & (mine[:, 1:] >= 0)).any()) or bool(
                ((mine < 0) != (theirs < 0)).any()
            ):
                return (
                    torch.inf,
                    torch.inf,
                    torch.inf,
                )  # a candidate twice, or too many or too few: no rounding does that
            differ = float((mine != theirs).sum())
            peak, spread = max(peak, differ), max(spread, differ)
        elif isinstance(want, Exact):
            if not torch.equal(y, want.values):
                return torch.inf, torch.inf, torch.inf
        else:
            d = y.double() - (want.rounded if clean is None else clean[i].double())
            unit = ((want.rounded - want.exact) ** 2 + want.noise**2).sqrt()
            d = torch.where(d == 0, 0.0, d / unit)
            if not d.isfinite().all():
                return torch.inf, torch.inf, torch.inf
            lean = max(lean, abs(float((d * want.exact.sign()).mean())))
            peak, spread = max(peak, float(d.abs().max())), max(spread, float(d.square().mean().sqrt()))
    return peak, spread, lean
