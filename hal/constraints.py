"""Constraints as data: one object gives the gate, the reason, the row in the docs and the samples on its edges.

    dim("head_dim").one_of(128, 512)      layout("window").one_of("v4_584")      needs("fp8_mma")

A field that a call does not mention (an optional argument that is absent) is not constrained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What is known of a call before any tensor exists. A dynamic size is a range `(low, high)`."""

    dims: Mapping[str, int | tuple[int, int]]
    dtypes: Mapping[str, str]
    layouts: Mapping[str, str]
    attributes: Mapping[str, Any]
    features: frozenset[str]


@dataclass(frozen=True)
class Reason:
    """Why a kernel cannot serve a call: the field, what it wanted and got, and the one thing to do."""

    field: str
    wanted: str
    got: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.field} is {self.got}, wanted {self.wanted}" + (f" ({self.fix})" if self.fix else "")


@dataclass(frozen=True)
class Constraint:
    """`holds(value)` for the value of one field; `yes` and `no` are values just inside and just outside."""

    kind: str
    name: str
    wanted: str
    holds: Callable[[Any], bool]
    yes: tuple[Any, ...] = ()
    no: tuple[Any, ...] = ()
    interval: tuple[int, int] | None = None

    def reason(self, facts: Facts) -> Reason | None:
        """Why the call is refused, or None."""
        if self.kind == "feature":
            return None if self.name in facts.features else Reason("chip", f"feature {self.name}", "without it")
        if self.kind == "check":
            return None if self.holds(facts) else Reason("call", self.wanted, "otherwise")
        values: Mapping[str, Any] = getattr(
            facts, {"dim": "dims", "dtype": "dtypes", "layout": "layouts", "attribute": "attributes"}[self.kind]
        )
        value = values.get(self.name)
        if value is None or (isinstance(value, tuple) and self.interval is not None):
            return None  # unsaid; or a range, which the coverage proof cuts to the interval
        ends = value if self.kind == "dim" and isinstance(value, tuple) else (value,)
        if all(self.holds(end) for end in ends):
            return None
        return Reason(f"{self.kind} {self.name}", self.wanted, str(value))


@dataclass(frozen=True)
class Field:
    """A named field, to be constrained."""

    kind: str
    name: str

    def one_of(self, *values: Any) -> Constraint:
        """One of the values."""
        return Constraint(self.kind, self.name, "one of " + ", ".join(map(str, values)), lambda v: v in values, values)

    def between(self, low: int, high: int) -> Constraint:
        """Both ends included. On a dynamic size, the part of the range that the kernel serves."""
        return Constraint(
            self.kind,
            self.name,
            f"{low}..{high}",
            lambda v: low <= v <= high,
            (low, high),
            (low - 1, high + 1),
            (low, high),
        )

    def multiple_of(self, step: int) -> Constraint:
        """A multiple of `step`."""
        return Constraint(self.kind, self.name, f"a multiple of {step}", lambda v: v % step == 0, (step,), (step + 1,))


def dim(name: str) -> Field:
    """A size of the signature."""
    return Field("dim", name)


def dtype(name: str) -> Field:
    """The dtype of an argument, by torch's name."""
    return Field("dtype", name)


def layout(name: str) -> Field:
    """The layout of a cache, or the scheme of a weight."""
    return Field("layout", name)


def attribute(name: str) -> Field:
    """An attribute of the call."""
    return Field("attribute", name)


def needs(feature: str) -> Constraint:
    """A named feature of the chip."""
    return Constraint("feature", feature, feature, lambda v: True)


def check(
    holds: Callable[[Facts], bool], *, says: str, yes: tuple[Any, ...] = (), no: tuple[Any, ...] = ()
) -> Constraint:
    """The hatch: any condition on the facts, in words."""
    return Constraint("check", "", says, holds, yes, no)


def combo(*constraints: Constraint) -> Constraint:
    """All of several constraints, as one; what each of them refuses is an example of what it refuses."""
    wanted = " and ".join(f"{c.name} {c.wanted}".strip() for c in constraints)
    inside = {c.name: c.yes[0] for c in constraints if c.yes}
    outside = tuple({**inside, c.name: value} for c in constraints for value in c.no)
    return Constraint(
        "check", "", wanted, lambda facts: all(c.reason(facts) is None for c in constraints), (inside,), outside
    )
