"""The edges of what a kernel declares: calls just inside that it must serve, and just outside that it must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hal import ops
from hal.conformance.samples import Sample
from hal.conformance.samples.variants import LIMITS, STATIC, variant
from hal.constraints import Constraint, Reason
from hal.errors import HalError
from hal.kernel import Kernel
from hal.planning import Call
from hal.target import Target

__all__ = ["Outside", "barrier", "eligible", "inside", "nearest", "outside"]

FEW = 6
"""Of a longer list of allowed numbers only the ends and the middle are tried."""

FACTS = {"dim": "dims", "dtype": "dtypes", "layout": "layouts", "attribute": "attributes"}
WORDS = {"dtype": ("float32", "bfloat16", "float16", "float64")}


@dataclass(frozen=True)
class Outside:
    """A call that `constraint` must refuse; `target` is the same chip, or one without the feature needed."""

    title: str
    constraint: Constraint
    call: Call
    target: Target


def barrier(kernel: Kernel, target: Target) -> Reason | None:
    """Why the kernel cannot serve any call: what the chip or the installation lacks, which no call can change."""
    facts = Call(kernel.contract).facts(target)
    reasons = (each.reason(facts) for each in kernel.constraints if each.kind in ("feature", "library"))
    return next((reason for reason in reasons if reason is not None), None)


def eligible(kernel: Kernel, call: Call, target: Target) -> bool:
    """Whether the kernel declares that it serves the call whole."""
    facts = call.facts(target)
    for constraint in kernel.constraints:
        if constraint.reason(facts) is not None:
            return False
        size = facts.dims.get(constraint.name) if constraint.kind == "dim" else None
        if constraint.interval is not None and isinstance(size, tuple):
            low, high = constraint.interval
            if size[0] < low or size[1] > high:
                return False
    return True


def nearest(kernel: Kernel, target: Target) -> list[Sample]:
    """A sample that the kernel declares, made for it; for kernels of sizes that no sample of the contract has."""
    sample = _near(kernel, target, {})
    return [sample] if sample is not None and eligible(kernel, sample.call, target) else []


def inside(kernel: Kernel, target: Target, seen: list[Sample]) -> Iterator[tuple[str, Sample]]:
    """Samples with values just inside each constraint that no sample of `seen` has.

    A kernel whose other constraints refuse such a value whatever the other fields are hides what it declares.
    """
    for constraint in kernel.constraints:
        if constraint.kind not in FACTS:
            continue
        key = (constraint.kind, constraint.name)
        known = [_value(sample.call, target, *key) for sample in seen]
        for value in _few(tuple(dict.fromkeys(constraint.yes))):
            if value in known or (value, value) in known or _too_large(constraint, value):
                continue
            sample = _near(kernel, target, {key: value})
            if sample is not None:
                yield f"{constraint.name}={value}", sample


def outside(kernel: Kernel, target: Target, seen: list[Sample]) -> Iterator[Outside]:
    """Calls like those of `seen` with one field just outside."""
    for constraint in kernel.constraints:
        if constraint.kind == "feature" and constraint.name in target.features and seen:
            without = replace(target, features=target.features - {constraint.name})
            yield Outside(f"without {constraint.name}", constraint, seen[0].call, without)
        if constraint.kind == "check":
            yield from _unchecked(constraint, target, seen)
        if constraint.kind not in FACTS:
            continue
        base = next((s for s in seen if _value(s.call, target, constraint.kind, constraint.name) is not None), None)
        if base is None:
            continue
        for value in _refused(kernel, constraint):
            call = _with(base.call, constraint.kind, constraint.name, value)
            yield Outside(f"{constraint.name}={value}", constraint, call, target)


def _unchecked(constraint: Constraint, target: Target, seen: list[Sample]) -> Iterator[Outside]:
    """Calls that a free condition refuses: its own examples, set into a sample that has those fields."""
    for index, example in enumerate(constraint.no):
        for sample in seen:
            call = sample.call
            for name, value in example.items():
                for kind in ("attribute", "layout", "dtype", "dim"):
                    if _value(call, target, kind, name) is not None:
                        call = _with(call, kind, name, value)
            if constraint.reason(call.facts(target)) is not None:
                yield Outside(f"check {index}: {constraint.wanted}", constraint, call, target)
                break


def _refused(kernel: Kernel, constraint: Constraint) -> list[Any]:
    """Values just outside a constraint."""
    contract = ops.get(kernel.contract)
    kind, name = constraint.kind, constraint.name
    values: list[Any] = list(constraint.no)
    if not values and kind == "dtype":
        values = list(WORDS["dtype"])
    elif not values and kind == "layout":
        promised = contract.promises.get(name)
        argument = next((a for a in contract.parsed.arguments if a.name == name), None)
        values = [promised] if promised else list(_layouts(argument.type if argument else ""))
    elif not values and kind == "attribute" and name in contract.choices:
        values = list(contract.choices[name])
    elif not values and all(isinstance(value, int) for value in constraint.yes) and constraint.yes:
        values = [min(constraint.yes) - 1, max(constraint.yes) + 1]
    return [value for value in values if not constraint.holds(value) and not (isinstance(value, int) and value < 0)]


def _layouts(kind: str) -> tuple[str, ...]:
    from hal.layouts import LAYOUTS
    from hal.ops.matmul import SCHEMES

    return SCHEMES if kind == "Weight" else tuple(LAYOUTS)


def _near(kernel: Kernel, target: Target, wanted: dict[tuple[str, str], Any]) -> Sample | None:
    """A sample with `wanted`, its other fields moved to where the kernel's other constraints want them."""
    fixed = set(wanted)
    for _ in range(len(kernel.constraints) + 1):
        try:
            sample = variant(kernel.contract, wanted)
        except (HalError, RuntimeError):
            return None
        if sample is None:
            return None
        facts = sample.call.facts(target)
        bad = [c for c in kernel.constraints if c.reason(facts) is not None and (c.kind, c.name) not in fixed]
        moved = next((c for c in bad if c.yes), None)
        if moved is None:
            return sample
        if moved.kind == "check":
            for name, value in moved.yes[0].items():
                kind = next(k for k in FACTS if _value(sample.call, target, k, name) is not None)
                wanted = {**wanted, (kind, name): wanted.get((kind, name), value)}
        else:
            wanted = {**wanted, (moved.kind, moved.name): moved.yes[0]}
    return sample


def _few(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(values) <= FEW or not all(isinstance(value, int) for value in values):
        return values
    return values[0], values[len(values) // 2], values[-1]


def _too_large(constraint: Constraint, value: Any) -> bool:
    """Sizes that would take minutes are not tried."""
    return constraint.kind == "dim" and value > LIMITS.get(constraint.name, STATIC)


def _value(call: Call, target: Target, kind: str, name: str) -> Any:
    """What the call itself says of a field; None where it says nothing."""
    if kind == "dim" and name in ops.get(call.contract).dynamic and name not in call.ranges:
        return None
    return getattr(call.facts(target), FACTS[kind]).get(name)


def _with(call: Call, kind: str, name: str, value: Any) -> Call:
    """The same call with another value of one field."""
    if kind == "dim" and name in call.ranges:
        return replace(call, ranges={**call.ranges, name: (value, value)})
    field = {"dim": "sizes", "dtype": "dtypes", "layout": "layouts", "attribute": "attributes"}[kind]
    words: dict[str, Any] = {field: {**getattr(call, field), name: value}}
    return replace(call, **words)
