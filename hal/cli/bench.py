"""`hal bench`: measurements against peers, interleaved in one process."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hal.cli.output import Json, show, table, working

if TYPE_CHECKING:
    from hal.bench.result import Comparison

Backend = Annotated[str | None, typer.Option(help="As HAL_BACKEND.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch on both sides; by default its own choice.")]

command = typer.Typer(no_args_is_help=True, help="Measure against peers, in turns in one process.")


@command.command()
def prefill(
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Prompt length; may be given more than once.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each side.")] = 2,
    backend: Backend = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """A prompt, against transformers on the same weights. Its memory grows with the square: 9 GB at 8192 tokens."""
    from hal.bench.prefill import prefill as measure

    lengths = tokens or [4096]
    _compare([(f"{n} tokens", measure, {"tokens": n}) for n in lengths], json, rounds, backend, threads)


@command.command()
def decode(
    context: Annotated[
        list[int] | None, typer.Option(help="Tokens in the caches; may be given more than once.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured tokens of each side.")] = 8,
    backend: Backend = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """One token at a time behind a long context, against transformers on the same weights."""
    from hal.bench.decode import decode as measure

    contexts = context or [65536]
    _compare([(f"{n} tokens", measure, {"context": n}) for n in contexts], json, rounds, backend, threads)


@command.command()
def overhead(
    calls: Annotated[int, typer.Option(min=1, help="Calls of one run.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each form, taken in turns.")] = 25,
    backend: Backend = None,
    json: Json = False,
) -> None:
    """What a bound call costs over calling its function, next to a torch.library.custom_op of the same function."""
    from hal.bench.overhead import overhead as measure

    with working("measuring calls"):
        result = measure(calls=calls, rounds=rounds, backend=backend)
    data = result.to_dict()
    show(data, json, lambda: _figures(data))


def _compare(
    jobs: list[tuple[str, Any, dict[str, int]]], json: bool, rounds: int, backend: str | None, threads: int | None
) -> None:
    results: list[Comparison] = []
    for label, measure, sizes in jobs:
        with working(f"measuring {label}"):
            results.append(measure(**sizes, rounds=rounds, backend=backend, threads=threads))
    show([result.to_dict() for result in results], json, lambda: _comparisons(results))


def _comparisons(results: list[Comparison]) -> Table:
    numbers = ("hal s", "peer s", "times faster", "max |logit difference|", "threads")
    made = table("work", "peer", *numbers, right=numbers)
    for each in results:
        made.add_row(
            each.work,
            each.peer,
            f"{median(each.seconds):.4g}",
            f"{median(each.peer_seconds):.4g}",
            f"{each.ratio:.2f}",
            f"{each.difference:.1e}",
            str(each.threads),
        )
    return made


def _figures(data: dict[str, Any]) -> Table:
    made = table("figure", "value", right=("value",))
    for name, value in data.items():
        made.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    return made
