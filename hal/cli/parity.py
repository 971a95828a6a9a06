"""`hal parity`: do two backends compute the same thing, and if not, which operator is to blame?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, console, show, table
from hal.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from hal.diagnosis.contracts import One
    from hal.diagnosis.record import Capture
    from hal.diagnosis.report import Report
    from hal.diagnosis.trajectory import Apart, Trajectory

NONE = "none"

STYLES = {"agree": "green", "not comparable": "yellow"}


def command(
    a: Annotated[str, typer.Argument(help="As in HAL_BACKEND: cpu, cuda@emulated, reference. Or a capture's folder.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    ops: Annotated[str, typer.Option(help="Only these operators, such as attn.* or moe.route; none for none.")] = "*",
    model: Annotated[Path | None, typer.Option(help="A checkpoint's folder: compare the whole model as well.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the model reads; by default a text of ours.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens of it.")] = 192,
    dtype: Annotated[str | None, typer.Option(help="Of the model on both sides; by default each chip's own.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for people to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The largest sample of each kind only.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds that one call may take.")] = 120.0,
    json: Json = False,
) -> None:
    """Run every operator on two backends, and a model, judged by the reference; exit code 1 if they do not agree."""
    from hal.diagnosis.contracts import compare, parities
    from hal.diagnosis.report import Report
    from hal.diagnosis.side import Side, Taken

    captures = [_capture(name) for name in (a, b)]
    questions = _questions(captures, ops, quick)
    if model is not None and any(captures):
        raise ConfigError("a capture has calls and no model", where="--model", fix="give two backends")
    made = (Side(name, limit=limit) if x is None else Taken(x) for name, x in zip((a, b), captures, strict=True))
    with next(made) as one, next(made) as other:
        told = one.tell(), other.tell()
        with _progress(len(questions), json) as step:
            found = parities(compare((one, other), questions), lambda compared: step(compared.contract))
    followed = None
    if model is not None:
        followed = _followed(model, (a, b), prompt, tokens, dtype, json)
    report = Report((a, b), told, tuple(found), quick, followed)
    if html is not None:
        _write(html, report)
    show(report.data(), json, lambda: _view(report))
    raise typer.Exit(not report.agrees)


def _capture(name: str) -> Capture | None:
    """The capture in a folder of this name, if it is one."""
    from hal.diagnosis.record import Capture

    return Capture(name) if Path(name).is_dir() and (Path(name).is_absolute() or os.sep in name) else None


def _questions(captures: list[Capture | None], glob: str, quick: bool) -> list[Any]:
    """Calls for both sides: of the capture, where one side is one, or else samples of the conformance suite."""
    from hal.diagnosis.contracts import planned
    from hal.diagnosis.replay import chosen
    from hal.ops import CONTRACTS

    given = [capture for capture in captures if capture is not None]
    if len(given) == 2:
        raise ConfigError("two captures cannot be compared: neither can be asked", where="A B", fix="give a backend")
    if given:
        return list(chosen(given[0], glob))
    names = [name for name in CONTRACTS if fnmatchcase(name, glob)]
    if not names and glob != NONE:
        raise UnknownName(f"no operator is called {glob!r}", where="--ops", fix="see `hal ops`")
    return list(planned(names, quick))


def _followed(
    model: Path, names: tuple[str, str], prompt: str | None, tokens: int, dtype: str | None, quiet: bool
) -> Trajectory:
    from hal.diagnosis.trajectory import follow, tokens_of

    page = console(stderr=True)
    wanted = tokens_of(model, prompt, tokens)
    with page.status("the model") if page.is_terminal and not quiet else nullcontext() as status:
        return follow(model, names, wanted, status.update if status is not None else lambda _: None, dtype=dtype)


def _write(file: Path, report: Report) -> None:
    from hal.diagnosis.page import page

    try:
        file.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(file), fix="name a file that can be") from error


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
    parts: list[RenderableType] = [Text(report.answer, style=f"bold {style}")]
    parts += [made, *_notes(report)] if report.contracts else []
    parts += [] if report.model is None else [_layers(report.model), *_logits(report.model)]
    return Group(*parts)


def _layers(model: Trajectory) -> Table:
    """A row per layer: errors of hidden states, and what is allowed."""
    a, b = (side.name for side in model.sides)
    columns = "layer", "kind", a, "allowed", b, "allowed ", "apart"
    made = table(*columns, right=("layer", *columns[2:]))
    made.caption = "Relative errors of the hidden states after every layer, root mean square over tokens."
    for layer, kind in enumerate(model.kinds):
        cells: list[str | Text] = []
        for side in model.sides:
            error, bound = side.errors[layer], side.bounds[layer]
            cells += [Text(f"{error:.2g}", style="" if error <= bound else "red"), f"{bound:.2g}"]
        made.add_row(str(layer), kind, *cells, f"{model.between[layer]:.2g}")
    return made


def _logits(model: Trajectory) -> Iterator[Text]:
    for side in model.sides:
        yield Text(side.answer, style="green" if side.agrees else "red")
        lossy = " (lossy, as HAL_ALLOW permits)" if side.lossy else ""
        yield Text(
            f"  logits against exact ones with its formats: {_apart(side.logits)}; "
            f"what its formats cost against the official arithmetic: {_apart(side.formats)}{lossy}"
        )
    yield Text(f"one another: {_apart(model.apart)}")


def _apart(apart: Apart) -> str:
    return f"{apart.kl:.2g} nats, {apart.greedy:.1%} of the likeliest tokens equal"


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
