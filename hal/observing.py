"""HAL_TRACE and HAL_CHECK: what wraps bound calls, only where one of them is set.

HAL_TRACE is `plan`, `calls[:glob]` or `values[:glob]`, then `[@file]`: a JSON line per plan entry or call, on stderr or
in the file; a call that raised has its error in place of outputs. `capture[:glob]@folder` records whole calls, tensors
included, for `hal replay capture`. HAL_CHECK is `glob[/N]`: the first and every further
Nth call of a fitting operator, counted per use in the model, is also computed by the reference in float64 and judged; a
disagreement is an error that names the operator, the kernel and the call. Parts of a composite are operators as well,
and come before it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hal import ops
from hal.environment import nearest
from hal.errors import BadRule, ConfigError, HalError, ParityError, UnknownName

if TYPE_CHECKING:
    from hal.planning import Choice
    from hal.target import Target

KINDS = ("plan", "calls", "values", "capture")


@dataclass(frozen=True)
class Trace:
    """What to write of which operators, and where: a file or folder, or stderr where it is empty."""

    kind: str
    glob: str
    file: str

    @classmethod
    def parse(cls, text: str) -> Trace:
        """Raises:
        BadRule: the text is not in the grammar.
        UnknownName: the glob fits no operator.
        """
        what, _, file = text.partition("@")
        kind, colon, glob = what.partition(":")
        globbed = not colon or (glob and kind != "plan")
        if kind not in KINDS or not globbed or (("@" in text or kind == "capture") and not file):
            raise BadRule(
                f"cannot read {text!r}",
                where="HAL_TRACE",
                fix="write plan, calls[:glob] or values[:glob], then [@file], or capture[:glob]@folder",
            )
        _known(glob or "*", "HAL_TRACE")
        return cls(kind, glob or "*", file)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add one line."""
        line = json.dumps(entry) + "\n"
        if not self.file:
            sys.stderr.write(line)
            return
        try:
            with Path(self.file).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise ConfigError(
                f"cannot write: {error}", where="HAL_TRACE", fix="name a file that can be written"
            ) from error


@dataclass(frozen=True)
class Check:
    """Which operators are compared with the reference, and every how many calls."""

    glob: str
    every: int

    @classmethod
    def parse(cls, text: str) -> Check:
        """Raises:
        BadRule: the text is not in the grammar.
        UnknownName: the glob fits no operator.
        """
        glob, slash, every = text.partition("/")
        if not glob or (slash and (not every.isdecimal() or int(every) < 1)):
            raise BadRule(f"cannot read {text!r}", where="HAL_CHECK", fix="write glob or glob/N with N from 1 on")
        _known(glob, "HAL_CHECK")
        return cls(glob, int(every) if slash else 1)


def _known(glob: str, where: str) -> None:
    if not any(fnmatchcase(contract, glob) for contract in ops.CONTRACTS):
        raise UnknownName(f"no operator is called {glob!r}", where=where, fix=nearest(glob, ops.CONTRACTS))


def watched(
    bound: Callable[..., Any], choice: Choice, target: Target, variables: Mapping[str, str]
) -> Callable[..., Any]:
    """A bound call with what the variables ask for around it; the call itself where they ask nothing of it.

    Raises:
        BadRule, UnknownName: a variable cannot be read.
    """
    contract = choice.call.contract
    if text := variables.get("HAL_CHECK"):
        check = Check.parse(text)
        if fnmatchcase(contract, check.glob):
            bound = _checked(bound, choice, check.every)
    if text := variables.get("HAL_TRACE"):
        trace = Trace.parse(text)
        if trace.kind == "plan":
            lost = {item.kernel: item.reason for item in choice.lost}
            parts = [part.call.contract for part in choice.parts]
            named = {"call": choice.call.title, "contract": contract, "kernel": choice.winner}
            trace.write({**named, "parts": parts, "lost": lost})
        elif fnmatchcase(contract, trace.glob):
            if trace.kind == "capture":
                return _recorded(bound, choice, target, trace.file)
            bound = _traced(bound, choice, trace)
    return bound


def _checked(bound: Callable[..., Any], choice: Choice, every: int) -> Callable[..., Any]:
    contract, attributes = choice.call.contract, dict(choice.call.attributes)
    count = 0

    def checked(*arguments: Any) -> Any:
        nonlocal count
        number, count = count, count + 1
        if number % every:
            return bound(*arguments)
        from hal.numerics import Precision
        from hal.numerics.contracts import expect

        wanted = expect(contract, arguments, attributes, Precision.of(*choice.kernels), choice.call.layouts)
        outputs = bound(*arguments)
        verdict = wanted.judge(outputs, arguments)
        if not verdict:
            raise ParityError(
                f"{contract} by {choice.winner} differs from the reference in call {number}: {verdict.text}",
                where=choice.call.title,
                fix=_way_out(choice),
            )
        return outputs

    return checked


def _way_out(choice: Choice) -> str:
    if choice.parts:
        return "run with HAL_CHECK='*', which looks at its parts first"
    denied = "|".join(f"!{kernel.id}" for kernel in choice.kernels)
    return f"run with HAL_OPS='{choice.call.contract}={denied}|*' and report it"


def _recorded(bound: Callable[..., Any], choice: Choice, target: Target, folder: str) -> Callable[..., Any]:
    from hal.diagnosis.capture import recorded

    return recorded(bound, choice, target, folder)


def _traced(bound: Callable[..., Any], choice: Choice, trace: Trace) -> Callable[..., Any]:
    from time import perf_counter

    count = 0

    def traced(*arguments: Any) -> Any:
        nonlocal count
        number, count = count, count + 1
        entry: dict[str, Any] = {
            "call": choice.call.title,
            "number": number,
            "contract": choice.call.contract,
            "kernel": choice.winner,
            "arguments": [_told(argument, trace.kind == "values") for argument in arguments],
        }
        began = perf_counter()
        try:
            outputs = bound(*arguments)
        except Exception as error:
            what = error.what if isinstance(error, HalError) else f"{type(error).__name__}: {error}"
            trace.write({**entry, "error": what})
            raise
        entry["seconds"] = perf_counter() - began
        told = outputs if isinstance(outputs, tuple | list) else (outputs,)
        trace.write({**entry, "outputs": [_told(output, trace.kind == "values") for output in told]})
        return outputs

    return traced


def _told(value: Any, values: bool) -> Any:
    """A tensor in words: dtype and shape, with `values` also its finite range, mean and count of NaN."""
    import torch

    if not isinstance(value, torch.Tensor):
        return None if value is None else type(value).__name__
    words: dict[str, Any] = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if values and value.numel():
        flat = value.detach().to("cpu").to(torch.float64)
        finite = flat[flat.isfinite()]
        words["nan"] = int(flat.isnan().sum())
        if finite.numel():
            words |= {"least": finite.min().item(), "most": finite.max().item(), "mean": finite.mean().item()}
    return words
