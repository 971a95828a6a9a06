"""The table of docs/authoring/constraints.md: what each word becomes is what the suite makes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hal import constraints
from hal.conformance.edges import eligible, inside, outside
from hal.conformance.samples import samples
from hal.kernel import Kernel
from hal.target import Target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "authoring" / "constraints.md"
ROW = re.compile(
    r"^\| `([a-z_.]+)` \| `((?:dim|dtype|layout|attribute|needs|check|combo)\(.*\))` \| (.*?) ?\| (.*) \|$", re.M
)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))
CHIP = Target("acme", "cpu", frozenset({"fp8_mma"}))


def test_every_word_is_in_the_table() -> None:
    said = " ".join(word for _, word, _, _ in ROWS)
    words = {name for name, value in vars(constraints).items() if callable(value) and name[0].islower()}
    assert all(word in said for word in words - {"dataclass"})
    assert all(f".{word}(" in said for word in ("one_of", "between", "multiple_of"))


@pytest.mark.parametrize(("contract", "word", "edges", "refusals"), ROWS, ids=[word for _, word, _, _ in ROWS])
def test_cases_are_those_of_the_page(contract: str, word: str, edges: str, refusals: str) -> None:
    kernel = Kernel("acme.kernel", contract, "acme:kernel", (eval(word, vars(constraints).copy()),))
    seen = [sample for sample in samples(contract) if eligible(kernel, sample.call, CHIP)]
    assert [title for title, _ in inside(kernel, CHIP, seen)] == re.findall(r"`([^`]*)`", edges)
    assert [refused.title for refused in outside(kernel, CHIP, seen)] == re.findall(r"`([^`]*)`", refusals)
