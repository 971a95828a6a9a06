"""`hal parity`: do two backends compute the same thing, and if not, which operator is to blame?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from hal.cli.output import Json, console, show, table

if TYPE_CHECKING:
    from hal.diagnosis.contracts import One
    from hal.diagnosis.report import Report

STYLES = {"agree": "green", "not comparable": "yellow"}


def command(
    a: Annotated[str, typer.Argument(help="As in HAL_BACKEND: cpu, cuda@emulated, reference.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    ops: Annotated[str, typer.Option(help="Only these operators, such as attn.* or moe.route.")] = "*",
    quick: Annotated[bool, typer.Option("--quick", help="The largest sample of each kind only.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds that one call may take.")] = 120.0,
    json: Json = False,
) -> None:
    """Run every operator's samples on two backends, judge both by the reference; exit code 1 if they do not agree."""
    from hal.diagnosis.contracts import compare, parities, planned
    from hal.diagnosis.report import Report
    from hal.diagnosis.side import Side
    from hal.errors import UnknownName
    from hal.ops import CONTRACTS

    chosen = [name for name in CONTRACTS if fnmatchcase(name, ops)]
    if not chosen:
        raise UnknownName(f"no operator is called {ops!r}", where="--ops", fix="see `hal ops`")
    with Side(a, limit=limit) as one, Side(b, limit=limit) as other:
        told = one.tell(), other.tell()
        samples = planned(chosen, quick)
        with _progress(len(samples), json) as step:
            found = parities(compare((one, other), samples), lambda compared: step(compared.contract))
    report = Report((a, b), told, tuple(found), quick)
    show(report.data(), json, lambda: _view(report))
    raise typer.Exit(not report.agrees)


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    page = console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=page, disable=quiet or not page.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)


def _view(report: Report) -> Group:
    """The answer, a row per operator, what was wrong first, and what was not served."""
    style = "green" if report.agrees else "red" if report.wrong else "yellow"
    names = report.names
    made = table("operator", "both", "same bits", *names, "apart", "verdict", right=("both", "same bits", "apart"))
    made.caption = "Worst error of each side and of one against the other; 1 is what is allowed."
    for one in report.contracts:
        sides = [_side(side) for side in one.sides]
        verdict = Text(_named(one.verdict, names), style=STYLES.get(one.verdict, "red"))
        row = [one.contract, f"{one.both} of {one.samples}", str(one.same), *sides]
        made.add_row(*row, f"{one.apart:.2g}" if one.both else "", verdict)
    return Group(Text(report.answer, style=f"bold {style}"), made, *_notes(report))


def _side(one: One) -> str:
    kernels = dict.fromkeys(name for served in one.kernels for name in re.split(r" [+|] ", served))
    return f"{one.margin:.2g}  {', '.join(kernels)}" if one.served else "not served"


def _named(verdict: str, names: tuple[str, str]) -> str:
    return {"A is wrong": f"{names[0]} is wrong", "B is wrong": f"{names[1]} is wrong"}.get(verdict, verdict)


def _notes(report: Report) -> Iterator[Text]:
    for one in report.contracts:
        for name, side in zip(report.names, one.sides, strict=True):
            if side.first:
                yield Text.assemble((f"{name} is wrong ", "red"), f"in {side.wrong} of {side.served}: {side.first}")
    for one in report.contracts:
        for name, side in zip(report.names, one.sides, strict=True):
            if side.refused:
                refused, (why, *more) = sum(side.refused.values()), side.refused
                others = f" ({len(more)} more reasons with --json)" if more else ""
                words = f"does not serve {refused} of {one.samples} of {one.contract}: "
                yield Text.assemble((f"{name} {words}", "yellow"), f"{why}{others}")
