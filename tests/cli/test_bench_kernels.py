"""`hal bench kernels` on this machine's CPU, and what it prints of others."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from hal.bench.published import published
from hal.cli.app import app
from hal.target import described

SIZES = "--decode 2 --prefill 8 --context 64 --experts 8 --rounds 1"
WORDS = f"bench kernels --backend cpu --kernel cpu.combine {SIZES}".split()


def test_a_kernel_is_timed_and_shown_as_a_share_of_the_machine() -> None:
    data = json.loads(CliRunner().invoke(app, [*WORDS, "--json"]).stdout)
    assert [(one["kernel"], one["work"]) for one in data["kernels"]] == [
        ("cpu.combine", "combine decode"),
        ("cpu.combine", "combine prefill"),
    ]
    for one in data["kernels"]:
        assert one["bytes"] == (2 if "decode" in one["work"] else 8) * (4096 * 2 * (6 + 1 + 1) + 6 * 8)
        assert one["share"] == one["bytes"] / data["copy"] / one["seconds"][0]


def test_a_backend_by_name_means_its_kernels() -> None:
    shown = CliRunner().invoke(app, f"bench cpu --kernel cpu.combine {SIZES}".split())
    assert shown.exit_code == 0
    assert "combine prefill" in shown.stdout
    absent = CliRunner().invoke(app, ["bench", "cuda"])
    assert absent.exit_code == 2
    assert "no cuda is in this machine" in absent.output
    assert CliRunner().invoke(app, ["bench", "prefil"]).exit_code == 2


def test_the_table_names_the_machine() -> None:
    shown = CliRunner().invoke(app, WORDS).stdout
    assert "cpu copies" in shown
    assert "combine prefill" in shown


def test_published_figures_name_a_chip_that_hal_describes_and_where_they_are_said() -> None:
    names = {target.name for target in described()}
    figures = [figure for name in names for figure in published(name)]
    assert figures
    assert all(figure.source and figure.tflops > 0 for figure in figures)
    assert {figure.target for figure in figures} <= names
