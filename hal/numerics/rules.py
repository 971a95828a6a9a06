"""The constants of the judge, chosen by the planted faults of `tools/calibrate_numerics.py`; see docs/numerics.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT", "Rules"]


@dataclass(frozen=True)
class Rules:
    """What an honest kernel may do.

    ulps: how many spacings of the output's dtype one element may be off, beyond its noise. Storing the result costs
        half of one; the rest absorbs a second rounding of a kernel that stores an intermediate in the same dtype.
    noise: how many standard deviations of its own rounding noise one element may be off in addition.
    ratio: how much larger than the baseline's the root mean square error may be, both in units of each element's
        own rounding, so that a few huge elements do not hide the others.
    floor: the baseline counts as at least this many units: another honest order of summation may be less lucky.
    z, bias: errors may lean toward or away from zero by `bias` units on average, unless that lean is within `z`
        standard errors of none. Rows are the independent samples: errors within one row share causes.
    rare: how many standard deviations (Poisson) the number of codes that differ may exceed its expectation.
    """

    ulps: float = 1.0
    noise: float = 6.0
    ratio: float = 1.25
    floor: float = 0.9
    z: float = 5.0
    bias: float = 0.1
    rare: float = 5.0


DEFAULT = Rules()
