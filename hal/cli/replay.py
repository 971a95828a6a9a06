"""`hal replay case`: one case of the conformance suite again, in this process, where a debugger can follow."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.text import Text

from hal.cli.output import Json, show

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
