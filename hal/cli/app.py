"""Puts the subcommands together, and turns every `HalError` into one paragraph on stderr and exit code 2."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hal.cli.output import error_paragraph
from hal.errors import HalError

COMMANDS = (
    "doctor",
    "env",
    "backends",
    "ops",
    "explain",
    "plan",
    "generate",
    "verify",
    "parity",
    "capture",
    "replay",
    "bisect",
    "bench",
    "compile",
    "new_backend",
)
"""Modules of `hal.cli`, in the order of `hal --help`. Each has `command`, a function or a Typer of subcommands."""


class Commands(TyperGroup):
    """A group whose commands may raise `HalError`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except HalError as error:
            error_paragraph(error)
            raise typer.Exit(2) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from hal.cli.output import version

        typer.echo(f"hal {version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One DeepSeek-V4 source on many chips: exactly specified operators, installable backends, plans with reasons."""


for _name in COMMANDS:
    _command = importlib.import_module(f"hal.cli.{_name}").command
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name.replace("_", "-"))
    else:
        app.command(_name.replace("_", "-"))(_command)
