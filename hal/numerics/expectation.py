"""What one call of a contract must return and leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hal.numerics.codes import Exact, Grid, judge_exact, judge_grid
from hal.numerics.rules import DEFAULT, Rules
from hal.numerics.selection import Selection, judge_selection
from hal.numerics.sums import Sums, judge_sums
from hal.numerics.verdict import Verdict

__all__ = ["Expectation", "Part", "Want", "judge"]

Want = Sums | Grid | Exact | Selection


def judge(got: Tensor, want: Want, rules: Rules = DEFAULT, output: str = "") -> Verdict:
    """Judge one tensor by the rule of its kind."""
    if isinstance(want, Sums):
        return judge_sums(got, want, rules, output)
    if isinstance(want, Selection):
        return judge_selection(got, want, rules, output)
    return judge_grid(got, want, rules, output) if isinstance(want, Grid) else judge_exact(got, want, output)


@dataclass(frozen=True)
class Part:
    """One thing to judge: how to find it in (outputs, arguments after the call), and what it should be.

    Where what is right depends on another output (weights of the experts that were chosen) `want` is a function of the
    outputs. `find` raises a LookupError or ValueError, whose text names the defect, where an output cannot be read.
    """

    name: str
    find: Callable[[Sequence[Any], Sequence[Any]], Tensor]
    want: Want | Callable[[Sequence[Any]], Want]


@dataclass(frozen=True)
class Expectation:
    """Everything that a call must return and leave behind; made from its arguments before the kernel touches them."""

    contract: str
    parts: tuple[Part, ...]

    def judge(self, outputs: object, arguments: Sequence[Any] = (), rules: Rules = DEFAULT) -> Verdict:
        """Judge what a kernel returned, and its arguments after the call where the contract mutates some."""
        returned = _returned(outputs)
        verdicts = []
        for part in self.parts:
            try:
                got = part.find(returned, arguments)
                want = part.want if isinstance(part.want, Want) else part.want(returned)
            except (LookupError, ValueError) as error:
                verdicts.append(Verdict(False, "shape", part.name, margin=2.0, note=str(error)))
                continue
            verdicts.append(judge(got.detach().to("cpu"), want, rules, part.name))
        return Verdict.of(verdicts)

    def defined(self, outputs: object, arguments: Sequence[Any] = ()) -> dict[str, Tensor]:
        """What of a call's outcome the contract defines, part by part; the rest may hold anything."""
        return {part.name: part.find(_returned(outputs), arguments) for part in self.parts}


def _returned(outputs: object) -> Sequence[Any]:
    return outputs if isinstance(outputs, tuple | list) else () if outputs is None else (outputs,)


def output(index: int, name: str, want: Want | Callable[[Sequence[Any]], Want]) -> Part:
    """The part that judges output number `index`."""

    def find(outputs: Sequence[Any], _: Sequence[Any]) -> Tensor:
        if index >= len(outputs) or not isinstance(outputs[index], Tensor):
            raise LookupError(f"output {index} is missing or no tensor; {len(outputs)} outputs were returned")
        found: Tensor = outputs[index]
        return found

    return Part(name, find, want)
