"""`hal bisect`: which operators make a command fail?"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, console, show, table

if TYPE_CHECKING:
    from hal.diagnosis.bisect import Finding, Guilty

STYLES = {"good": "green", "bad": "red", "unclear": "yellow"}
USES = 4  # named one by one in the answer


def command(
    words: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What fails, as one writes it, behind `--`.")],
    output: Annotated[
        bool, typer.Option("--output", help="Bad is what prints other text than with every operator on the reference.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that one run may take; one that takes more is not judged.")
    ] = None,
    json: Json = False,
) -> None:
    """Run COMMAND with some operators on the reference, by halves, until the smallest set that makes it fail is left.

    A run is good with exit code 0, cannot be judged with 125, and is bad with any other. Exit code 1 if none is guilty.
    """
    from hal.diagnosis.bisect import bisect
    from hal.diagnosis.command import Command

    with _telling() as tell:
        found = bisect(Command(words, timeout), output=output, tell=tell)
    said = answer(found, shlex.join(words))
    data = {"command": words, **asdict(found), "answer": said}
    show(data, json, lambda: _tried(found))
    if not json:  # its command line can be copied from a terminal only if nothing breaks it
        console().print(Text(said, style="" if found.guilty else "yellow"), soft_wrap=True)
    raise typer.Exit(not found.guilty)


def answer(found: Finding, words: str) -> str:
    """What was found, as a paragraph."""
    if not found.guilty:
        return f"{found.missing} (Runs: {found.runs}.)"
    unclear = sum(tried.state == "unclear" for tried in found.tried)
    sentences = [*(sentence for guilty in found.guilty for sentence in _accused(guilty, found))]
    sentences.append(f"This works around it, it was tried: {found.workaround} {words}")
    if unclear:
        sentences.append(f"({unclear} of the runs could not be judged: a smaller set may be guilty.)")
    return "\n".join([*sentences, f"(Runs: {found.runs}.)"])


def _accused(guilty: Guilty, found: Finding) -> Iterator[str]:
    named = [f"{name} ({', '.join(found.operators[name])})" for name in guilty.operators]
    yield f"{'Guilty' if len(named) == 1 else 'Guilty together, none of them alone'}: {' and '.join(named)}."
    first, right = guilty.first, _calls(guilty)
    if first:
        before = f" Before it these were right: {right}." if right else ""
        yield f"First bad call: call {first.number} of {first.call}, counted from 0: {first.text}.{before}"
    elif right:
        yield (
            f"No call is wrong by itself: HAL_CHECK found all right that it saw ({right}), and the run ended with "
            f"{guilty.ended}. The fault is in what is done between calls, or to what other operators hold."
        )
    else:
        yield f"HAL_CHECK saw no call return; the run ended with {guilty.ended}."


def _calls(guilty: Guilty) -> str:
    """How many calls of which uses were right; many uses only as their number."""
    if len(guilty.right) > USES:
        return f"{sum(guilty.right.values())} calls of {len(guilty.right)} uses"
    return ", ".join(f"{count} of {call}" for call, count in guilty.right.items())


def _tried(found: Finding) -> Table:
    made = table("run", "on the backend's kernels", "result", "how", "seconds", title="Tried", right=("run", "seconds"))
    for number, tried in enumerate(found.tried, 1):
        kept = "all" if tried.kept == tuple(found.operators) else ", ".join(tried.kept) or "none"
        state = Text(tried.state, style=STYLES[tried.state])
        made.add_row(str(number), kept, state, tried.says, f"{tried.seconds:.1f}")
    return made


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Shows the current run on a terminal."""
    page = console(stderr=True)
    if not page.is_terminal:
        yield lambda _: None
        return
    with page.status("") as status:
        yield lambda what: status.update(Text(what))
