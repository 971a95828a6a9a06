"""`hal bench`: measurements against peers, interleaved in one process."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from hal.bench.published import published
from hal.bench.scale import V4
from hal.cli.output import Json, show, table, working

if TYPE_CHECKING:
    from hal.bench.kernels import Ceilings, Timed
    from hal.bench.result import Comparison

Backend = Annotated[str | None, typer.Option(help="As HAL_BACKEND.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch on both sides; by default its own choice.")]


class Benches(TyperGroup):
    """`hal bench cuda` is `hal bench kernels --backend cuda`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The named measurement, or that of a backend's kernels."""
        if args and args[0] not in self.commands:
            from hal import plugins

            if args[0].partition("@")[0].partition(":")[0] in plugins.installed():
                args = ["kernels", "--backend", *args]
        return super().resolve_command(ctx, args)


command = typer.Typer(
    cls=Benches, no_args_is_help=True, help="Measure against peers, in turns in one process; BACKEND means its kernels."
)


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


@command.command()
def kernels(
    kernel: Annotated[str, typer.Option(help="Only these kernels, by id; may hold * and ?.")] = "*",
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of each call.")] = 5,
    decode: Annotated[int, typer.Option(min=1, help="Tokens of a decoding call.")] = V4.decode,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of a prefilling call.")] = V4.prefill,
    context: Annotated[int, typer.Option(min=1, help="Tokens behind a decoded one.")] = V4.context,
    experts: Annotated[int, typer.Option(min=7, help="Experts; 6 are chosen, one is idle.")] = V4.experts,
    backend: Backend = None,
    json: Json = False,
) -> None:
    """Each kernel at V4-Flash's sizes, against the machine's own copy and product measured in the same run."""
    from hal.bench.kernels import ceilings
    from hal.bench.kernels import kernels as measure
    from hal.policy import Policy
    from hal.selection import target_of

    chip = target_of(Policy.current(backend=backend))
    scale = replace(V4, decode=decode, prefill=prefill, context=context, experts=experts)
    with working("measuring the machine"):
        limits = ceilings(chip)
    found: list[Timed] = []
    with working(f"measuring the kernels of {chip.name}"):
        found.extend(measure(chip, limits, scale, pattern=kernel, rounds=rounds))
    data = {
        "target": chip.name,
        "copy": limits.bandwidth,
        "product": limits.flops,
        "kernels": [one.to_dict() for one in found],
        "published": [asdict(figure) for figure in published(chip.name)],
    }
    show(data, json, lambda: _timed(chip.name, limits, found))


def _timed(chip: str, limits: Ceilings, found: list[Timed]) -> Group:
    numbers = ("ms", "GB/s", "TFLOP/s", "of the machine")
    made = table("kernel", "call", *numbers, right=numbers)
    for one in found:
        rates = f"{one.bandwidth / 1e9:.4g}", f"{one.arithmetic / 1e12:.3g}" if one.flops else "", f"{one.share:.0%}"
        made.add_row(one.kernel, one.work, f"{median(one.seconds) * 1e3:.4g}", *rates)
    machine = f"{chip} copies {limits.bandwidth / 1e9:.4g} GB/s and multiplies {limits.flops / 1e12:.3g} TFLOP/s"
    others = [
        f"published: {each.tflops:g} TFLOP/s on {each.chip}, {each.what} ({each.source})" for each in published(chip)
    ]
    return Group(made, *(Text(line) for line in (machine, *others)))


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
