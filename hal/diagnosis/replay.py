"""A capture's calls again, on another chip: what was recorded and what is computed here, judged alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from hal.binding import bind
from hal.diagnosis.record import Capture, Recorded
from hal.errors import HalError, PlanError, UnknownName
from hal.numerics.contracts import expect
from hal.numerics.verdict import Verdict
from hal.planning import plan
from hal.policy import Policy
from hal.selection import target_of
from hal.target import Target

__all__ = ["Replayed", "chosen", "replay"]


@dataclass(frozen=True)
class Replayed:
    """One call, judged twice against the reference in float64.

    Attributes:
        call: as it was recorded.
        there: the verdict on what was recorded.
        kernel: that serves the call here; empty where none does.
        here: the verdict on what it returned and left; None where it did not run.
        why: it did not run.
    """

    call: Recorded
    there: Verdict
    kernel: str = ""
    here: Verdict | None = None
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether what ran here is right. A call that cannot be served here is not wrong, and not right."""
        return self.here is None or self.here.passed


def chosen(capture: Capture, glob: str = "*", number: int | None = None) -> list[Recorded]:
    """The calls of some operators, or one of them.

    Raises:
        UnknownName: there is none.
    """
    found = [call for call in capture.calls if fnmatchcase(call.contract, glob) and number in (None, call.number)]
    if not found:
        have = ", ".join(sorted({call.contract for call in capture.calls})) or "no call at all"
        raise UnknownName(f"no recorded call fits: {glob}", where=str(capture.folder), fix=f"it has {have}")
    return found


def replay(capture: Capture, calls: list[Recorded], policy: Policy) -> Iterator[Replayed]:
    """Judge recorded calls, one after the other, on the chip of `policy`.

    Raises:
        CaptureError: a call cannot be read back.
        BackendError: the chip cannot be used.
    """
    target = target_of(policy)
    for call in calls:
        yield _replayed(call, target, policy)


def _replayed(call: Recorded, target: Target, policy: Policy) -> Replayed:
    planned = call.call
    expected = expect(call.contract, call.arguments(), planned.attributes, layouts=planned.layouts)
    there = expected.judge(call.outputs(), call.arguments(after=True))
    try:
        made = plan([planned], target=target, policy=policy)
    except PlanError as error:
        return Replayed(call, there, why="; ".join(error.blockers) or error.what)
    kernel = made.choices[0].winner
    arguments = call.arguments(target.device_type)
    try:
        with torch.no_grad():
            outputs = bind(made)[planned.title](*arguments)
    except HalError as error:
        return Replayed(call, there, kernel, Verdict(False, "raised", margin=2.0, note=str(error)))
    return Replayed(call, there, kernel, expected.judge(outputs, arguments))
