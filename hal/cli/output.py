"""What commands share: the `--json` option, tables, numbers for people, and how an error looks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from hal.errors import HalError

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

PIPE_WIDTH = 120
"""Columns of a table that is not printed to a terminal."""


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; one that is not a terminal gets a width that does not cut tables."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def show(data: Any, as_json: bool, *views: RenderableType | Callable[[], RenderableType]) -> None:
    """Print `data` as JSON, or else the views, which are only made when they are shown."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    page = console()
    for view in views:
        page.print(view() if callable(view) else view)


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """An empty table; columns named in `right` hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def working(what: str) -> AbstractContextManager[object]:
    """Shows on a terminal that something long is going on."""
    page = console(stderr=True)
    return page.status(what) if page.is_terminal else nullcontext()


def error_paragraph(error: HalError) -> None:
    """An error as one paragraph on stderr."""
    page = console(stderr=True)
    page.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=not page.is_terminal)


def quantity(number: float, unit: str = "") -> str:
    """A number to three digits with a decimal prefix: `quantity(1.5729e12, "B")` is `1.57 TB`."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= power:
            return f"{_digits(number / power)} {prefix}{unit}"
    return f"{_digits(number)} {unit}".rstrip()


def binary(count: float) -> str:
    """Bytes with a binary prefix: `4.94 GiB`."""
    for power, prefix in ((1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if count >= power:
            return f"{_digits(count / power)} {prefix}B"
    return f"{_digits(count)} B"


def _digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 or number == int(number) else f"{number:#.3g}"


def version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import version as installed

    return installed("hal-accel")
