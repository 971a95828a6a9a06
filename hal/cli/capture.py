"""`hal capture`: record the operator calls of a command, to be judged elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hal.cli.output import Json, binary, show, table

if TYPE_CHECKING:
    from hal.diagnosis.record import Capture


def command(
    words: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to record, behind `--`.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    ops: Annotated[str, typer.Option(help="Operators, such as attn.* or moe.route.")] = "*",
    limit: Annotated[int, typer.Option(min=1, help="Most MiB of tensors.")] = 256,
    every: Annotated[int, typer.Option(min=1, help="Record call 0, N, 2N ... of each use.")] = 1,
    per_use: Annotated[int, typer.Option(min=0, help="Most calls of each use; 0 is any number.")] = 0,
    json: Json = False,
) -> None:
    """Run COMMAND and write its operator calls into a folder: arguments, outputs, plan. Its exit code is passed on."""
    from hal.diagnosis.capture import Wanted, prepare
    from hal.diagnosis.record import HEADER, Capture
    from hal.errors import CaptureError, ConfigError

    prepare(out, Wanted(limit, every, per_use))
    variables = {**os.environ, "HAL_TRACE": f"capture:{ops}@{out.absolute()}"}
    try:
        code = subprocess.run(words, env=variables, check=False).returncode
    except OSError as error:
        raise ConfigError(f"cannot run: {error}", where=words[0], fix="write a program and its arguments") from error
    if not (out / HEADER).exists():
        fix = "check that it runs a model through hal, and that --ops fits an operator of it"
        raise CaptureError(f"exit code {code}, and no operator was called", where=words[0], fix=fix)
    found = Capture(out)
    data = {"folder": str(out), "exit": code, "target": found.target, "bytes": found.bytes, "uses": _uses(found)}
    show(data, json, lambda: _view(found))
    raise typer.Exit(code if code >= 0 else 128 - code)


def _uses(found: Capture) -> dict[str, Any]:
    counts = Counter(call.use for call in found.calls)
    first = {call.use: call for call in reversed(found.calls)}
    uses = {
        use: {"contract": first[use].contract, "kernel": first[use].kernel, "calls": count, "missing": ""}
        for use, count in counts.items()
    }
    for use, why in found.dropped.items():
        uses.setdefault(use, {"contract": "", "kernel": "", "calls": 0})["missing"] = why
    return uses


def _view(found: Capture) -> Table:
    shown = table("use", "operator", "kernel", "calls", "not recorded because", right=("calls",))
    shown.title = f"{len(found.calls)} calls on {found.target}, {binary(found.bytes)} in {found.folder}"
    for use, words in _uses(found).items():
        shown.add_row(use, words["contract"], words["kernel"], str(words["calls"]), words["missing"])
    return shown
