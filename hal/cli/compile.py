"""`hal compile`: what a backend's compiler makes of its kernels, for chips that need not be here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, console, show, table

if TYPE_CHECKING:
    from hal.kernel import Compiled


def command(
    backend: Annotated[str, typer.Argument(help="A backend, or one of its chips: cuda, cuda:sm90.")],
    kernel: Annotated[str, typer.Option(help="Only these kernels, by id or by the function that is launched.")] = "*",
    page: Annotated[Path | None, typer.Option(help="Write the table as Markdown between the marks of a page.")] = None,
    json: Json = False,
) -> None:
    """Compile every kernel and configuration and say what came of it; exit code 1 if one is no good."""
    from hal import plugins
    from hal.errors import ConfigError, NoDevice
    from hal.target import described

    name = backend.split(":")[0]
    loaded = plugins.load(name)
    chips = [target for target in described() if backend in (target.backend, target.name)]
    if not chips:
        raise NoDevice(f"no chip is called {backend}", where="hal compile", fix="see the chips of `hal plan --help`")
    found: list[Compiled] = []
    with _progress(json) as bar:
        task = bar.add_task("starting")
        for chip in chips:
            for one in loaded.compiled(chip, kernel):
                found.append(one)
                bar.update(task, description=f"{one.chip}: {one.kernel}, {len(found)} compiled")
    if not found:
        raise ConfigError(f"{backend} compiles nothing that fits {kernel!r}", where="hal compile", fix="see `hal ops`")
    if page is not None:
        _write(page, found)
    show([asdict(one) for one in found], json, lambda: _view(found))
    raise typer.Exit(any(one.fault for one in found))


def _progress(quiet: bool) -> Progress:
    to = console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=to, disable=quiet or not to.is_terminal, transient=True)


def _view(found: list[Compiled]) -> Group:
    """The faults, a row per kernel and configuration with its worst launch, and the sum."""
    faults = [
        Text(f"{one.chip} {one.kernel} ({one.entry}; {one.values}): {one.fault}", style="red")
        for one in found
        if one.fault
    ]
    counts = Counter(one.chip for one in found)
    said = ", ".join(f"{chip} {count}" for chip, count in counts.items())
    good = len(found) - len(faults)
    last = Text(f"{len(found)} compiled ({said}): {good} good", style="green" if not faults else "red")
    return Group(_rows(found), *faults, last)


def _rows(found: Iterable[Compiled]) -> Table:
    facts = list(dict.fromkeys(name for one in found for name in one.facts))
    made = table("chip", "kernel", "configuration", "launches", *facts, right=("launches", *facts))
    for words, launches in _grouped(found).items():
        made.add_row(*words, str(len(launches)), *(_worst(launches, fact) for fact in facts))
    return made


def _grouped(found: Iterable[Compiled]) -> dict[tuple[str, str, str], list[Compiled]]:
    groups: dict[tuple[str, str, str], list[Compiled]] = {}
    for one in found:
        groups.setdefault((one.chip, one.kernel, one.entry), []).append(one)
    return groups


def _worst(launches: list[Compiled], fact: str) -> str:
    """The largest number of a group, the smallest of a share; words as they differ."""
    values = [one.facts[fact] for one in launches if fact in one.facts]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or not numbers:
        return ", ".join(dict.fromkeys(str(value) for value in values if value))
    return f"{min(numbers):.0%}" if isinstance(numbers[0], float) else str(max(numbers))


def _write(page: Path, found: list[Compiled]) -> None:
    """The table into a page, between `<!-- begin: hal compile -->` and `<!-- end -->`."""
    from hal.errors import ConfigError

    begin, end = "<!-- begin: hal compile -->\n", "<!-- end: hal compile -->"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in text or end not in text:
        what = f"has no marks {begin.strip()} and {end}"
        raise ConfigError(what, where=str(page), fix="put them where the table is to be")
    facts = list(dict.fromkeys(name for one in found for name in one.facts))
    lines = ["| " + " | ".join(("chip", "kernel", "configuration", "launches", *facts)) + " |"]
    lines.append("|" + "---|" * 3 + "---:|" * (1 + len(facts)))
    for words, launches in _grouped(found).items():
        cells = (*words, str(len(launches)), *(_worst(launches, fact) for fact in facts))
        lines.append("| " + " | ".join(cells) + " |")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after, encoding="utf-8")
