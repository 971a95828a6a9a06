"""Judge a choice: the k highest scores of each row, as indices in any order, padded with -1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hal.numerics.rounding import ulp
from hal.numerics.rules import DEFAULT, Rules
from hal.numerics.verdict import Verdict

__all__ = ["Selection", "judge_selection"]


@dataclass(frozen=True)
class Selection:
    """Scores that a choice of `k` per row is made by.

    scores: float64 [rows, candidates]; -inf where a candidate is not visible to the row.
    noise: float64, broadcastable: standard deviation of an honest kernel's score error.
    k: how many to choose; rows with fewer visible candidates choose all of them.
    score_dtype: what scores are stored in before they are compared.
    """

    scores: Tensor
    noise: Tensor
    k: int
    score_dtype: torch.dtype = torch.float32


def judge_selection(got: Tensor, want: Selection, rules: Rules = DEFAULT, output: str = "") -> Verdict:
    """Judge `got` [rows, width] of candidate numbers, -1 after the chosen ones.

    Another set than the reference's is right only where scores are closer than their own bounds, which makes exact
    ties free: the multisets of scores agree.
    """
    scores = want.scores.double()
    rows, candidates = scores.shape
    if got.ndim != 2 or got.shape[0] != rows:
        note = f"got shape {list(got.shape)}, wanted {rows} rows"
        return Verdict(False, "shape", output, note=note, margin=2.0)
    if not got.numel():
        return Verdict(True, "selection", output, note="empty")
    chosen = got.detach().to(scores.device).long()
    visible = scores > -torch.inf
    padding = chosen == -1

    def fail(mask: Tensor, rule: str, note: str) -> Verdict:
        flat = int(mask.reshape(-1).int().argmax())
        place = (flat // mask.shape[1], flat % mask.shape[1])
        value = float(chosen[place]) if mask.shape == chosen.shape else None
        return Verdict(False, rule, output, coordinate=place, got=value, margin=2.0, note=note)

    outside = ~padding & ((chosen < 0) | (chosen >= candidates))
    if bool(outside.any()):
        return fail(outside, "padding", f"an index is outside 0..{candidates - 1} and not -1")
    if not candidates:
        return Verdict(True, "selection", output, note="no candidates")
    hidden = ~padding & ~visible.gather(1, chosen.clamp_min(0))
    if bool(hidden.any()):
        return fail(hidden, "padding", "a candidate was chosen that its row may not see")
    late = ~padding & (padding.int().cumsum(1) > 0)
    if bool(late.any()):
        return fail(late, "padding", "an index follows the padding")
    times = torch.zeros(rows, candidates, dtype=torch.int32, device=scores.device)
    times.scatter_add_(1, chosen.clamp_min(0), (~padding).int())
    if bool((times > 1).any()):
        return fail(times > 1, "selection", "a candidate was chosen twice")
    wanted = visible.sum(1).clamp_max(min(want.k, got.shape[1]))
    short = (~padding).sum(1) != wanted
    if bool(short.any()):
        row = int(short.int().argmax())
        note = f"row {row} chose {int((~padding[row]).sum())} candidates, wanted {int(wanted[row])}"
        return Verdict(False, "selection", output, coordinate=(row,), margin=2.0, note=note)

    finite = torch.where(visible, scores, 0.0)
    bound = ulp(finite, want.score_dtype) * rules.ulps + rules.noise * want.noise.double().expand_as(scores)
    taken = times > 0
    worst_in, low = torch.where(taken, finite + bound, torch.inf).min(1)
    best_out, high = torch.where(visible & ~taken, finite - bound, -torch.inf).max(1)
    gap = best_out - worst_in
    row = int(gap.argmax())
    i, j = int(low[row]), int(high[row])
    swapped = bool(gap[row] > -torch.inf) and float(finite[row, j]) > float(finite[row, i])
    slack = float(bound[row, i] + bound[row, j])
    distance = float(finite[row, j] - finite[row, i]) if swapped else 0.0
    return Verdict(
        not bool((gap > 0).any()),
        "selection",
        output,
        coordinate=(row, i) if swapped else None,
        got=float(finite[row, i]) if swapped else None,
        wanted=float(finite[row, j]) if swapped else None,
        bound=slack if swapped else None,
        margin=distance / slack if swapped and slack else 0.0,
        note=f"row {row} chose {i} over {j}, whose score is higher" if swapped else "",
    )
