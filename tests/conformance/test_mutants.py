"""The suite catches planted bugs known from the wild and accepts honest kernels; `hal verify --self` runs all."""

from __future__ import annotations

import pytest

from hal.cli.mutants import MARKER, sentence
from hal.conformance.mutants import HONEST, MUTANTS, Mutant
from hal.conformance.mutants.hunt import Caught, hunt

ONE_OF_A_KIND = {
    "mutant-ignored-page-stride": "law: ",
    "mutant-sink-dropped": "parity: ",
    "mutant-order-changes": "repeat: ",
    "mutant-write-past-the-end": "guards: ",
    "mutant-residual-overwritten": "mutated: ",
    "mutant-same-kernel-twice": "borrowed: ",
    "mutant-ran-on-the-host": "host: ",
    "mutant-scheme-not-implemented": "raised: ",
    "mutant-segmentation-fault": "crashed: SIGSEGV",
    "mutant-process-ended": "exited: ",
    "mutant-mask-read-in-a-graph": "law: declared capturable",
    "mutant-split-where-tokens-are-few": "law: declared batch invariant",
}


def caught(mutant: Mutant, quick: bool = True) -> Caught:
    (found,) = hunt((mutant,), quick)
    return found


def test_the_catalogue_cites_every_bug() -> None:
    assert len(MUTANTS) >= 25
    assert len({mutant.name for mutant in (*MUTANTS, *HONEST)}) == len(MUTANTS) + len(HONEST)
    for mutant in MUTANTS:
        assert mutant.issue.startswith("https://github.com/")
        assert mutant.issue.rsplit("/", 1)[1].isdigit()
        assert mutant.says


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_one_bug_of_each_kind_is_caught_and_named(name: str) -> None:
    found = caught(next(mutant for mutant in MUTANTS if mutant.name == name))
    assert found.by is not None
    assert found.by.text.startswith(ONE_OF_A_KIND[name])
    assert found.right


def test_support_that_is_not_declared_is_found() -> None:
    found = caught(next(mutant for mutant in MUTANTS if mutant.name == "mutant-works-beyond-its-list"), quick=False)
    assert found.by is not None
    assert found.by.text.startswith("hidden: ")


@pytest.mark.parametrize("mutant", HONEST[::3], ids=lambda mutant: mutant.name)
def test_honest_kernels_pass(mutant: Mutant) -> None:
    found = caught(mutant)
    assert found.by is None, found.by
    assert found.cases > 5


def test_the_number_is_written_between_its_markers() -> None:
    text = MARKER.sub(rf"\g<1>\n{sentence([])}\n\g<2>", "a <!-- kill-rate -->old<!-- /kill-rate --> b")
    assert text.startswith("a <!-- kill-rate -->\nThe conformance suite catches 0 of 0")
    assert text.endswith("<!-- /kill-rate --> b")
