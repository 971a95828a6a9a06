"""Bytes that the CUDA backend's Triton kernels move, over the bytes that nobody can avoid.

    python -m hal_emulators.triton.roofline --page docs/kernels.md

Every kernel runs in the interpreter on small calls of DeepSeek-V4's shapes (`hal.bench.shapes`). `moved` counts each
32-byte sector once per launch, as if the cache held what a launch reuses; `requested` is what all programs ask for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hal import plugins
from hal.bench.scale import INTERPRETED
from hal.bench.shapes import calls
from hal.bench.work import Work, work
from hal.conformance.edges import eligible
from hal.conformance.samples import Sample
from hal.conformance.samples.attention import attend_sample
from hal.conformance.samples.batches import Requests
from hal_emulators.triton import start, traffic

BEGIN, END = "<!-- begin: roofline -->\n", "<!-- end: roofline -->"


@dataclass(frozen=True)
class Moved:
    """One kernel on one call: what had to cross memory, what did, and what the programs asked for."""

    kernel: str
    call: str
    work: Work
    moved: int
    requested: int

    @property
    def row(self) -> str:
        """A line of the table."""
        needed = self.work.bytes
        numbers = (
            f"{self.work.flops / 1e6:.1f}",
            f"{needed / 1e3:.1f}",
            f"{self.work.flops / needed:.1f}",
            f"{self.moved / needed:.2f}",
            f"{self.requested / needed:.2f}",
        )
        return "| " + " | ".join((self.kernel, self.call, *numbers)) + " |"


LONG = Requests("long", (1,), (131071,))
"""One token behind so many that the rows it sees are worth cutting."""


def counted() -> Iterator[tuple[str, Sample]]:
    """The calls of the table."""
    yield from calls(INTERPRETED)
    yield (
        "hca long decode",
        attend_sample("hca", 128, LONG, "bfloat16", "v4_584", heads=64, holes="selected"),
    )


HEADER = "| kernel | call | MFLOP | needed KB | FLOP/byte | moved/needed | requested/needed |\n|---|---|" + "---:|" * 5


def measure(chip: str = "sm90") -> Iterator[Moved]:
    """Every Triton kernel of the CUDA backend on every call that it takes; calls that launch none are left out."""
    target = start(chip)
    for kernel in plugins.load("cuda").kernels(target):
        if not kernel.code.startswith("hal_triton."):
            continue
        for name, sample in counted():
            if sample.contract != kernel.contract or not eligible(kernel, sample.call, target):
                continue
            arguments = sample.arguments()
            with torch.no_grad(), traffic.count() as ledger:
                outputs = kernel.load()(*arguments, **sample.attributes)
            if ledger.moved:
                done = work(sample.contract, arguments, sample.attributes, outputs)
                yield Moved(kernel.id, name, done, ledger.moved, ledger.requested)


def main() -> None:
    """Print the table, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, help="write the table between its marks in this page")
    page: Path | None = parser.parse_args().page
    rows = []
    print(HEADER)
    for moved in measure():
        rows.append(moved.row)
        print(moved.row, flush=True)
    if page is not None:
        text = page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        page.write_text(before + BEGIN + "\n" + "\n".join((HEADER, *rows)) + "\n\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
