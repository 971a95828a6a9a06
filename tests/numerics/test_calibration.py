"""The quick form of the experiment that chose the judge's constants."""

import pytest
import torch

from tools.calibrate_numerics import jobs, measure, verdict
from tools.planted import report


@pytest.fixture(scope="module")
def found():
    threads = torch.get_num_threads()
    yield measure(jobs(1, quick=True), workers=1)
    torch.set_num_threads(threads)


def test_no_honest_kernel_is_rejected_and_faults_are_found(found):
    rejected, missed, real = verdict(found)
    assert rejected == 0, [f"{r.family} {r.name} {r.kernel}" for r in found if r.real is None and not r.accepted["hal"]]
    assert real > 600
    assert missed <= 0.01 * real, [f"{r.family} {r.name} {r.kernel}" for r in found if r.real and r.accepted["hal"]]


def test_verdicts_do_not_change_with_the_scale_of_the_data(found):
    assert not [f"{r.family} {r.name} {r.kernel}" for r in found if r.flipped.get("hal")]


def test_most_planted_faults_are_larger_than_rounding(found):
    planted = [r for r in found if r.real is not None]
    assert sum(bool(r.real) for r in planted) > 0.9 * len(planted)


def test_rules_with_an_absolute_tolerance_measure_the_data(found):
    assert sum(r.flipped.get("FlagGems", False) for r in found) > 100
    assert sum(r.accepted.get("DeepGEMM", False) for r in found if r.real) > 100


def test_the_tables_render(found):
    text = report.tables(found, 1)
    assert "| **hal** | 0 / " in text
