"""`hal verify`: does a backend compute what its kernels declare? Ends with an account that adds up."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, console, show, table

if TYPE_CHECKING:
    from hal.conformance.account import Account
    from hal.conformance.result import Result
    from hal.conformance.verify import Run

STYLES = {"green": "green", "incomplete": "yellow", "failed": "red"}


def command(
    backend: Annotated[str, typer.Argument(help="As in HAL_BACKEND: cpu, cuda@emulated, reference.")] = "",
    select: Annotated[str, typer.Option("-k", help="Only cases whose name holds this text, or matches it.")] = "",
    kernel: Annotated[str, typer.Option(help="Only kernels whose id matches.")] = "*",
    quick: Annotated[bool, typer.Option("--quick", help="A few samples of each kind.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds that one case may take.")] = 120.0,
    evidence: Annotated[Path | None, typer.Option(help="Write evidence here instead of the cache directory.")] = None,
    itself: Annotated[bool, typer.Option("--self", help="Test the suite: it must catch every planted bug.")] = False,
    readme: Annotated[Path | None, typer.Option(help="With --self: the page that gets the number.")] = None,
    json: Json = False,
) -> None:
    """Run the conformance suite on a backend; a worker process per kernel, exit code 1 unless all is green."""
    from hal.conformance.verify import Run
    from hal.errors import ConfigError

    if itself == bool(backend):
        raise ConfigError("name a backend, or --self", where="hal verify", fix="try `hal verify cpu --quick`")
    if itself:
        from hal.cli.mutants import report

        raise typer.Exit(report(json, select, readme))

    run = Run.plan(backend, kernel=kernel, select=select, quick=quick, limit=limit)
    results = _run(run, quiet=json)
    account = run.account(results)
    whole = not quick and not select
    if evidence is not None or whole:
        from hal.evidence import cached, write

        write(evidence or cached(run.found.target.split(":")[0]), run.records(account, complete=whole))
    show(_data(run, account), json, lambda: _lines(account), lambda: _last(account))
    raise typer.Exit(account.verdict != "green")


def _run(run: Run, quiet: bool) -> list[Result]:
    """Every result; bad ones are printed as they come, with the command that repeats them."""
    from hal.conformance.result import EXPECTED

    page, results = console(), []
    with _progress(quiet) as bar:
        task = bar.add_task(run.found.target, total=run.planned)
        try:
            for result in run.results():
                results.append(result)
                bar.update(task, advance=1, description=result.kernel)
                if not quiet and (not result.good or result.status == EXPECTED):
                    _bad(run, result, page)
        except KeyboardInterrupt:  # what has no end yet is skipped, and the account says so
            pass
    return results


def _bad(run: Run, result: Result, page: Console) -> None:
    style = "yellow" if result.good else "red"
    page.print(Text.assemble((f"{result.status} ", style), result.name, f"\n  {result.text}"), soft_wrap=True)
    page.print(Text(f"  {run.replay(result.name)}", style="dim"), soft_wrap=True)


def _progress(quiet: bool) -> AbstractContextManager[Progress]:
    page = console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=page, disable=quiet or not page.is_terminal, transient=True)


def _data(run: Run, account: Account) -> dict[str, Any]:
    return {
        "backend": run.backend,
        "target": run.found.target,
        "emulated": run.found.emulated,
        "verdict": account.verdict,
        "cases": account.planned,
        **account.counts,
        "kernels": [asdict(line) for line in account.lines],
        "bad": [
            {**asdict(result), "replay": run.replay(result.name)}
            for result in account.results.values()
            if not result.good
        ],
    }


def _lines(account: Account) -> Table:
    made = table("kernel", "contract", "cases", *account.counts, right=("cases", *account.counts))
    for line in account.lines:
        made.add_row(line.kernel, line.contract, str(line.planned), *(str(n or "") for n in line.counts.values()))
    return made


def _last(account: Account) -> Text:
    return Text(account.words, style=STYLES[account.verdict])
