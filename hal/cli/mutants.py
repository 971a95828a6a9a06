"""`hal verify --self`: the suite on backends with one planted bug each, and on honest ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hal.cli.output import show, table, working

if TYPE_CHECKING:
    from hal.conformance.mutants.hunt import Caught

MARKER = re.compile(r"(<!-- kill-rate -->).*?(<!-- /kill-rate -->)", re.DOTALL)
"""The block of a page that `hal verify --self --readme PAGE` writes."""


def report(as_json: bool, select: str = "", readme: Path | None = None) -> int:
    """Hunt mutants whose names hold `select`, show who caught them, and write the rate into a page; the exit code."""
    from hal.conformance.mutants import HONEST, MUTANTS
    from hal.conformance.mutants.hunt import hunt

    chosen = tuple(mutant for mutant in (*MUTANTS, *HONEST) if select in mutant.name)
    with working("hunting"):
        found = list(hunt(chosen))
    show([_data(caught) for caught in found], as_json, lambda: _table(found), lambda: Text(sentence(found)))
    if readme is not None:
        text = readme.read_text(encoding="utf-8")
        readme.write_text(MARKER.sub(rf"\g<1>\n{sentence(found)}\n\g<2>", text), encoding="utf-8")
    return int(not all(caught.right for caught in found))


def sentence(found: list[Caught]) -> str:
    """The numbers in words."""
    bugs = [caught for caught in found if caught.mutant.issue]
    honest = [caught for caught in found if not caught.mutant.issue]
    killed, kept = sum(caught.right for caught in bugs), sum(caught.right for caught in honest)
    return (
        f"The conformance suite catches {killed} of {len(bugs)} planted bugs, each cited from a public issue, "
        f"and accepts {kept} of {len(honest)} honest kernels (`hal verify --self`)."
    )


def _data(caught: Caught) -> dict[str, object]:
    mutant, by = caught.mutant, caught.by
    return {
        "name": mutant.name,
        "contract": mutant.contract,
        "bug": mutant.says if mutant.issue else "",
        "issue": mutant.issue,
        "caught_by": by.name if by else "",
        "how": by.text if by else "",
        "right": caught.right,
    }


def _table(found: list[Caught]) -> Table:
    made = table("contract", "bug", "where it happened", "caught by")
    for caught in found:
        mutant, by = caught.mutant, caught.by
        where = mutant.issue.removeprefix("https://github.com/").replace("/issues/", "#").replace("/pull/", "#")
        how = f"{by.name.split('/')[2]}: {by.text.split(':')[0]}" if by else "nothing"
        style = "green" if caught.right else "red"
        made.add_row(mutant.contract, mutant.says, Text(where, style="dim"), Text(how, style=style))
    return made
