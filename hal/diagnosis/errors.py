"""Errors of two sides in units of what is allowed: drawn as a distribution, and the one place that shows most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hal.numerics import DEFAULT, Exact, Expectation, Grid, Selection, Sums, Want

__all__ = ["EDGES", "Difference", "Worst", "differences", "histogram"]

EDGES = tuple(10.0 ** (step / 4) for step in range(-16, 5))
"""Quarter decades from 1e-4 to 10 of what is allowed. Smaller errors, 0 among them, and larger ones have bins too."""


@dataclass(frozen=True)
class Worst:
    """The element with the largest error of either side, in units of what is allowed."""

    output: str
    index: tuple[int, ...]
    wanted: float
    got: tuple[float | None, float | None]
    errors: tuple[float | None, float | None]

    @property
    def error(self) -> float:
        """The larger one."""
        return max(error for error in self.errors if error is not None)


@dataclass(frozen=True)
class Difference:
    """Two sides on one call.

    Attributes:
        errors: of each side, every element; None where it has no readable outputs.
        worst: None where nothing is judged element by element (choices).
        apart: the largest difference between the sides, in units of what each may err; None where a side is missing.
        same: every bit of what they returned is equal.
    """

    errors: tuple[Tensor | None, Tensor | None]
    worst: Worst | None
    apart: float | None
    same: bool


def histogram(errors: Tensor) -> list[int]:
    """Counts below, between and above `EDGES`."""
    bins = torch.bucketize(errors, torch.tensor(EDGES, dtype=torch.float64))
    return torch.bincount(bins, minlength=len(EDGES) + 1).tolist()


def differences(wanted: Expectation, sides: Sequence[tuple[Any, tuple[Any, ...]] | None]) -> Difference:
    """`sides`: outputs and arguments after the call of A and of B, or None."""
    errors: tuple[list[Tensor], list[Tensor]] = [], []
    worst: Worst | None = None
    apart, same = 0.0, True
    for part in wanted.parts:
        got = [None if side is None else _read(part.find, side) for side in sides]
        wants = [None if x is None else _want(part.want, side) for x, side in zip(got, sides, strict=True)]
        if got[0] is None or got[1] is None or got[0].shape != got[1].shape:
            same = False
        else:
            same = same and bool(((got[0] == got[1]) | (got[0].isnan() & got[1].isnan())).all())
            apart = max(apart, _apart(got[0], got[1], wants[0]))
        found = [None if x is None else _errors(x, want) for x, want in zip(got, wants, strict=True)]
        for mine, one in zip(errors, found, strict=True):
            mine += [] if one is None else [one.flatten()]
        here = _worst(part.name, got, wants, found)
        if here is not None and (worst is None or here.error > worst.error):
            worst = here
    both = all(side is not None for side in sides)
    whole = [None if side is None else torch.cat(e or [torch.empty(0)]) for e, side in zip(errors, sides, strict=True)]
    return Difference((whole[0], whole[1]), worst, apart if both else None, both and same)


def _read(find: Any, side: tuple[Any, tuple[Any, ...]]) -> Tensor | None:
    outputs, arguments = side
    try:
        found: Tensor = find(outputs, arguments).detach().to("cpu")
    except (LookupError, ValueError):
        return None
    return _number(found)


def _want(want: Any, side: Any) -> Want | None:
    if isinstance(want, Want):
        return want
    try:
        found: Want = want(side[0])
    except (LookupError, ValueError):
        return None
    return found


def _exact(want: Want) -> Tensor | None:
    """What is wanted, element by element."""
    if isinstance(want, Sums):
        return want.reference.double()
    if isinstance(want, Grid):
        return want.rounded.double()
    return _number(want.values) if isinstance(want, Exact) else None


def _number(values: Tensor) -> Tensor:
    """In float64, integers as they are."""
    return values.double() if values.is_floating_point() else values.long()


def _errors(got: Tensor, want: Want | None) -> Tensor | None:
    """Of every element, as a fraction of what is allowed; None for choices and for another shape than is wanted."""
    if want is None or isinstance(want, Selection):
        return None
    exact = _exact(want)
    if exact is None or exact.shape != got.shape:
        return None
    equal = (got == exact) | (got.isnan() & exact.isnan())
    if isinstance(want, Sums):
        error = (got - exact).abs() / want.bound(DEFAULT)
    elif isinstance(want, Grid):
        own = (exact - want.exact.double()).abs()
        error = ((got - want.exact.double()).abs() - own).clamp_min(0) / want.slack(DEFAULT).clamp_min(1e-300)
    else:
        error = torch.full(got.shape, 2.0, dtype=torch.float64)
    return error.masked_fill(equal, 0.0).nan_to_num(math.inf, math.inf)


def _apart(a: Tensor, b: Tensor, want: Want | None) -> float:
    """Sums only: codes are a step apart or equal, choices are sets."""
    if not isinstance(want, Sums) or not a.numel() or a.shape != want.reference.shape:
        return 0.0
    distance = (a - b).abs() / want.bound(DEFAULT)
    equal = (a == b) | (a.isnan() & b.isnan())
    return float(distance.masked_fill(equal, 0.0).nan_to_num(math.inf, math.inf).max())


def _worst(name: str, got: list[Tensor | None], wants: list[Want | None], errors: list[Tensor | None]) -> Worst | None:
    best: tuple[float, int] | None = None
    for side, one in enumerate(errors):
        if one is not None and one.numel() and (best is None or float(one.max()) > best[0]):
            best = float(one.max()), side
    if best is None:
        return None
    errors_of, want = errors[best[1]], wants[best[1]]
    assert errors_of is not None
    assert want is not None
    place = tuple(int(i) for i in torch.unravel_index(errors_of.argmax(), errors_of.shape))
    exact = _exact(want)
    assert exact is not None

    def at(values: list[Tensor | None]) -> tuple[float | None, float | None]:
        one, other = (None if x is None or x.shape != errors_of.shape else float(x[place]) for x in values)
        return one, other

    return Worst(name, place, float(exact[place]), at(got), at(errors))
