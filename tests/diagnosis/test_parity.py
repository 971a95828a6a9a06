"""`hal parity`: operators and a whole model on two backends, planted faults found where they are, a page for people."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hal.cli.app import app
from hal.conformance.samples import samples
from hal.diagnosis.errors import EDGES, differences, histogram
from hal.numerics.contracts import expect

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny-v4"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def parity(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit code of `hal parity --json`, and what it says."""
    result = CliRunner().invoke(app, ["parity", "--json", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout) if result.stdout else {"error": result.stderr}


@pytest.fixture
def planted(acme: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`acme`, for the worker processes of this one."""

    def install(source: str, *faults: str) -> None:
        monkeypatch.syspath_prepend(acme(source, *faults))

    return install


LOUD = """
from hal_cpu import attention


def attend(q, window, compressed, rows, sink, batch, **words):
    out, lse = attention.attend(q, window, compressed, rows, sink, batch, **words)
    return (out if rows is None else out * 1.02), lse
"""


def test_equal_backends_agree() -> None:
    code, found = parity("reference", "cpu", "--quick", "--ops", "moe.*")
    assert code == 0
    assert found["agrees"]
    names = [one["contract"] for one in found["contracts"]]
    assert names == ["moe.route", "moe.dispatch", "moe.experts", "moe.combine", "moe.ffn"]
    for one in found["contracts"]:
        assert one["both"] == one["samples"] > 0
        assert all(side["served"] == one["samples"] and 0 <= side["margin"] <= 1 for side in one["sides"])
        assert all(sum(side["errors"]) > 0 for side in one["sides"])
    assert found["contracts"][0]["sides"][1]["kernels"] == {"cpu.route": found["contracts"][0]["samples"]}


def test_the_wrong_side_and_its_kernel_are_named(planted: Callable[..., None]) -> None:
    planted(LOUD, "attend")
    code, found = parity("acme", "cpu", "--quick", "--ops", "attn.attend")
    (one,) = found["contracts"]
    assert code == 1
    assert found["answer"] == "acme is wrong in attn.attend (acme.attend)."
    assert one["sides"][0]["wrong"] > 0 == one["sides"][1]["wrong"]
    errors = one["worst"]["errors"]
    assert errors[0] > 1 > errors[1]
    assert one["worst"]["got"][0] == pytest.approx(1.02 * one["worst"]["wanted"], rel=5e-3)
    assert sum(one["sides"][0]["errors"][EDGES.index(1.0) + 1 :]) > 0
    assert sum(one["sides"][1]["errors"][EDGES.index(1.0) + 1 :]) == 0


def test_a_kernel_that_ends_its_process_is_wrong_and_the_rest_is_judged(planted: Callable[..., None]) -> None:
    planted("import os\n\n\ndef route(*_, **__):\n    os._exit(3)\n", "route")
    code, found = parity("acme", "reference", "--quick", "--ops", "moe.[rc]*")
    route, combine = found["contracts"]
    assert code == 1
    assert (route["verdict"], combine["verdict"]) == ("A is wrong", "agree")
    assert "code 3" in route["sides"][0]["first"]


def test_what_a_side_does_not_serve_is_no_disagreement() -> None:
    code, found = parity("cuda:sm90@emulated", "cpu", "--quick", "--ops", "attn.index_scores", "--limit", "300")
    (one,) = found["contracts"]
    assert code == 0, found["answer"]
    assert 0 < one["both"] < one["samples"]
    assert any("dtype q is float32" in why for why in one["sides"][0]["refused"])
    assert found["a"]["emulated"]


def test_a_capture_is_a_side(planted: Callable[..., None], tmp_path: Path) -> None:
    """What acme computed in a run is compared with what cpu makes of the same calls."""
    planted(LOUD, "attend")
    words = [sys.executable, "-m", "hal", "capture", "--out", str(tmp_path / "run"), "--ops", "attn.attend"]
    run = [sys.executable, "-m", "hal", "generate", str(MODEL), "--prompt", "The for", "--max-new-tokens", "4"]
    subprocess.run([*words, "--", *run], check=True, capture_output=True)
    code, found = parity(str(tmp_path / "run"), "cpu")
    (one,) = found["contracts"]
    assert code == 1
    assert one["verdict"] == "A is wrong"
    assert set(one["sides"][0]["guilty"]) == {"acme.attend"}
    assert one["sides"][1]["wrong"] == 0
    assert one["sides"][0]["wrong"] == sum("csa" in line for line in _uses(tmp_path / "run"))


def _uses(folder: Path) -> list[str]:
    lines = (folder / "calls.jsonl").read_text().splitlines()
    return [json.loads(line).get("use", "") for line in lines]


def test_a_model_on_two_backends(tmp_path: Path) -> None:
    page = tmp_path / "parity.html"
    words = ["--quick", "--ops", "moe.route", "--model", str(MODEL), "--tokens", "40", "--html", str(page)]
    code, found = parity("reference", "cpu", *words)
    model = found["model"]
    assert code == 0, found["answer"]
    assert len(model["between"]) == len(model["kinds"]) == 4
    assert model["apart"]["greedy"] == 1.0
    for side in model["sides"]:
        assert all(0 < error <= bound for error, bound in zip(side["errors"], side["bounds"], strict=True))
        assert side["formats"]["kl"] == 0.0
    _page(page, found["answer"])


def _page(page: Path, answer: str) -> None:
    """One file with everything in it, which a browser shows as it is meant."""
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|@import|url\(|<script""", text)
    assert answer in text
    assert 'id="layers"><svg' in text
    if CHROMIUM is None:
        pytest.skip("incomplete: the page was written and not opened, no Chromium is installed")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    dom = _run(*words, "--dump-dom", page.as_uri())
    assert re.search(r'<h1 id="answer" class="agree">' + re.escape(answer), dom)
    assert dom.count("<svg") == 2
    assert len(re.findall(r"<circle", dom)) == 8
    picture = page.with_suffix(".png")
    _run(*words, f"--screenshot={picture}", "--window-size=1000,1600", page.as_uri())
    assert picture.stat().st_size > 20_000


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_first_layer_and_operator_of_a_faulty_model(planted: Callable[..., None]) -> None:
    """Only layers with a list of entries are faulty: the first of them is layer 1."""
    planted(LOUD, "attend")
    code, found = parity("cpu", "acme", "--ops", "none", "--model", str(MODEL), "--tokens", "40")
    honest, faulty = found["model"]["sides"]
    assert code == 1
    assert honest["left"] is None
    assert honest["blame"] is None
    assert faulty["left"] == 1
    assert faulty["blame"]["layer"] == 1
    assert faulty["blame"]["use"] == "csa.attend"
    assert "acme.attend" in found["answer"]
    assert found["answer"].startswith("acme: the first wrong operator is in layer 1")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("cpu", "nowhere"), "nowhere"),
        (("cpu", "reference", "--ops", "attn.nothing"), "no operator is called 'attn.nothing'"),
        (("cpu", "reference", "--ops", "none", "--model", "/nowhere"), "no such folder"),
        (("cpu", "reference", "--ops", "none", "--model", str(MODEL), "--prompt", ""), "the prompt has no tokens"),
        (("{folder}", "cpu"), "hal capture"),
    ],
)
def test_bad_input_is_one_paragraph(words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    code, found = parity(*(word.format(folder=tmp_path) for word in words))
    assert code == 2
    assert found["error"].startswith("error: ")
    assert text in " ".join(found["error"].split())


def test_errors_are_in_units_of_what_is_allowed() -> None:
    """An output that is off by exactly twice its bound in one element has error 2 there, and 0 elsewhere."""
    sample = next(one for one in samples("quant.matmul") if one.dynamic.get("tokens"))
    wanted = expect(sample.contract, sample.arguments(), sample.attributes, layouts=sample.layouts)
    (part,) = wanted.parts
    exact = part.want.reference.double()
    off = exact.clone()
    off[0, 0] += 2 * part.want.bound()[0, 0]
    outcomes = [((values,), sample.arguments()) for values in (exact, off)]
    found = differences(wanted, outcomes)
    assert found.worst is not None
    assert found.worst.index == (0, 0)
    assert found.worst.errors == (0.0, pytest.approx(2.0))
    assert found.apart == pytest.approx(2.0)
    assert not found.same
    assert found.errors[1] is not None
    assert int((found.errors[1] > 0).sum()) == 1


def test_the_histogram_counts_everything_once() -> None:
    values = torch.tensor([0.0, 1e-5, 0.5, 0.99, 1.01, 3.0, torch.inf], dtype=torch.float64)
    counts = histogram(values)
    assert sum(counts) == len(values)
    assert counts[0] == 2
    assert sum(counts[EDGES.index(1.0) + 1 :]) == 3
    assert counts[-1] == 1
