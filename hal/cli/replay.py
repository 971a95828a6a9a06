"""`hal replay`: a case of the conformance suite again, where a debugger can follow, or the calls of a capture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from hal.cli.output import Json, show, table, working

if TYPE_CHECKING:
    from hal.diagnosis.record import Capture
    from hal.diagnosis.replay import Replayed
    from hal.numerics.verdict import Verdict

command = typer.Typer(no_args_is_help=True, help="Run one recorded or generated call again.")


@command.callback()
def _root() -> None:
    """Run one recorded or generated call again."""


@command.command("case")
def case(
    name: Annotated[str, typer.Argument(help="As `hal verify` prints it: contract/kernel/kind/title.")],
    backend: Annotated[str, typer.Option(help="As in HAL_BACKEND.")],
    json: Json = False,
) -> None:
    """Run a case of the conformance suite by its name; exit code 1 if it fails."""
    from hal.conformance.cases import find
    from hal.conformance.trial import Wrong

    found, subject = find(name, backend)
    begun, wrong, margin = time.perf_counter(), "", None
    try:
        margin = found.run(subject)
    except Wrong as error:
        wrong = str(error)
    data = {
        "name": name,
        "target": subject.target.name,
        "emulated": subject.target.emulated,
        "passed": not wrong,
        "text": wrong,
        "margin": margin,
        "seconds": time.perf_counter() - begun,
    }
    show(data, json, lambda: _view(data))
    raise typer.Exit(bool(wrong))


def _view(data: dict[str, Any]) -> Text:
    state = ("passed", "green") if data["passed"] else ("failed", "red")
    detail = data["text"] or ("" if data["margin"] is None else f"{data['margin']:.3g} of what is allowed")
    return Text.assemble(state, f" on {data['target']}: {data['name']}", f"\n{detail}" if detail else "")


@command.command("capture")
def capture(
    folder: Annotated[Path, typer.Argument(help="Written by `hal capture`.")],
    backend: Annotated[str | None, typer.Option(help="As HAL_BACKEND.")] = None,
    ops: Annotated[str, typer.Option(help="Operators, such as attn.* or moe.route.")] = "*",
    call: Annotated[int | None, typer.Option(help="One call, by its number in the capture.")] = None,
    json: Json = False,
) -> None:
    """Judge what was recorded, and what this chip makes of the same arguments; exit code 1 if something is wrong."""
    from hal.diagnosis.record import Capture
    from hal.diagnosis.replay import chosen, replay
    from hal.policy import Policy

    recorded = Capture(folder)
    policy = Policy.current(backend=backend)
    calls = chosen(recorded, ops, call)
    with working(f"judging {len(calls)} calls"):
        found = list(replay(recorded, calls, policy))
    data = {"folder": str(folder), "there": recorded.target, "here": policy.backend, "calls": [_line(x) for x in found]}
    show(data, json, lambda: _judged(recorded, policy.backend, found))
    raise typer.Exit(not all(x.there and x.passed for x in found))


def _line(one: Replayed) -> dict[str, Any]:
    words = {"number": one.call.number, "use": one.call.use, "count": one.call.count, "contract": one.call.contract}
    there = {"kernel": one.call.kernel, **_verdict(one.there)}
    here = {"kernel": one.kernel, **_verdict(one.here)} if one.here is not None else {"not served": one.why}
    return {**words, "there": there, "here": here}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"passed": verdict.passed, "margin": verdict.margin, "text": verdict.text}


def _judged(recorded: Capture, backend: str, found: list[Replayed]) -> Group:
    """A row per use and the first bad call of each side; what is not served here last."""
    shown = table("use", "calls", recorded.target, "wrong", backend, "wrong", right=("calls", "wrong"))
    shown.title = "Worst error, 1 is what is allowed"
    uses: dict[str, list[Replayed]] = {}
    for one in found:
        uses.setdefault(one.call.use, []).append(one)
    texts = []
    for use, ones in uses.items():
        served = [one.here for one in ones if one.here is not None]
        row = [use, str(len(ones)), *_side([one.there for one in ones])]
        shown.add_row(*row, *(_side(served) if served else ("not served", "")))
        bad = [(recorded.target, one.call.kernel, one, one.there) for one in ones if not one.there][:1]
        bad += [(backend, one.kernel, one, one.here) for one in ones if one.here is not None and not one.here][:1]
        texts += [
            Text(
                f"{side}: call {one.call.number} ({use}, its call {one.call.count}) by {kernel}: {verdict}", style="red"
            )
            for side, kernel, one, verdict in bad
        ]
        texts += [Text(f"{backend} cannot serve {use}: {ones[0].why}", style="yellow")] if not served else []
    return Group(shown, *texts)


def _side(verdicts: list[Verdict]) -> tuple[str, str]:
    return f"{max(verdict.margin for verdict in verdicts):.3g}", str(sum(not verdict for verdict in verdicts) or "")
