"""A capture holds what a run computed; replayed anywhere it is judged as the run itself is; damage is named."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hal
from hal import plugins
from hal.cli.app import app
from hal.conformance.arguments import same_bits, tensors
from hal.conformance.mutants import HONEST, MUTANTS
from hal.conformance.mutants.planted import install
from hal.conformance.samples import Sample, samples
from hal.diagnosis import capture as capturing
from hal.diagnosis.record import HEADER, LINES, Capture
from hal.diagnosis.replay import Replayed, chosen, replay
from hal.errors import CaptureError, UnknownName
from hal.numerics.contracts import expect
from hal.ops import CONTRACTS

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "tiny-v4"


def small(contract: str) -> list[Sample]:
    """Samples with something in them, the quickest first."""
    found = [one for one in samples(contract) if 0 not in one.dynamic.values() and not one.once]
    return sorted(found, key=lambda one: sum(x.numel() for _, x in tensors(contract, one.arguments())))


SMALL = {contract: small(contract)[:2] for contract in CONTRACTS}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(capturing._Recorder, "_open", {})
    install()
    yield
    for mutant in (*MUTANTS, *HONEST):
        plugins.EXTRA.pop(mutant.name, None)


def record(folder: Path, sample: Sample, backend: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Run a sample on a backend under HAL_TRACE=capture; what it returned, and its arguments after it."""
    monkeypatch.setenv("HAL_TRACE", f"capture:{sample.contract}@{folder}")
    arguments = sample.arguments()
    with hal.use(backend=backend, allow="unverified,reference,nondeterministic"), torch.no_grad():
        outputs = hal.bind(sample.call)(*arguments)
    monkeypatch.delenv("HAL_TRACE")
    return outputs, arguments


def again(folder: Path, backend: str) -> list[Replayed]:
    found = Capture(folder)
    policy = hal.Policy.current(backend=backend, allow="unverified,reference,nondeterministic")
    return list(replay(found, chosen(found), policy))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_what_is_read_back_is_what_was_there(contract: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample, *_) = SMALL[contract]
    outputs, arguments = record(tmp_path, sample, "cpu", monkeypatch)
    (call,) = Capture(tmp_path).calls
    before = dict(tensors(contract, sample.arguments()))
    for after, wanted in ((False, before), (True, dict(tensors(contract, arguments)))):
        found = dict(tensors(contract, call.arguments(after=after)))
        assert found.keys() == wanted.keys()
        for path, tensor in found.items():
            if path.endswith((".pages", "state.tensor")):
                rows = [i for i, row in enumerate(tensor) if not bool((row.view(-1).view(torch.uint8) == 255).all())]
                assert rows or not len(tensor) or after is False
                assert same_bits(tensor[rows], wanted[path][rows]), path
            else:
                assert same_bits(tensor, wanted[path]), path
    read = call.outputs()
    for one, other in zip(read if isinstance(read, tuple) else (read,), _several(outputs), strict=True):
        if isinstance(one, torch.Tensor):
            assert same_bits(one, other)


def _several(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


PAIRS = [(contract, "cpu", "reference") for contract in CONTRACTS] + [
    (mutant.contract, *sides)
    for mutant in MUTANTS
    if mutant.contract in ("attn.store", "attn.compress_pool", "moe.route", "attn.attend", "quant.matmul")
    and not any(word in mutant.name for word in ("segmentation", "process-ended", "hangs", "order", "past"))
    for sides in (("cpu", mutant.name), (mutant.name, "cpu"))
]


@pytest.mark.parametrize(("contract", "one", "other"), PAIRS)
def test_verdicts_are_those_of_running_both_here(
    contract: str, one: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, sample in enumerate(SMALL[contract]):
        expected = expect(contract, sample.arguments(), sample.attributes, layouts=sample.layouts)
        try:
            runs = [record(tmp_path / f"{number}-{side}", sample, side, monkeypatch) for side in (one, other)]
        except hal.HalError:
            continue  # a mutant refuses or raises: nothing to record
        (judged,) = again(tmp_path / f"{number}-{one}", other)
        for found, run in zip((judged.there, judged.here), runs, strict=True):
            wanted = expected.judge(*run)
            assert found is not None
            assert (found.passed, found.rule, found.output) == (wanted.passed, wanted.rule, wanted.output)
            assert found.margin == pytest.approx(wanted.margin, rel=0.1)  # BLAS rounds by where in memory a matrix is


def test_some_of_those_verdicts_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would hold for a judge that passes everything."""
    sample = SMALL["attn.attend"][0]
    record(tmp_path, sample, "mutant-lse-in-base-two", monkeypatch)
    (judged,) = again(tmp_path, "cpu")
    assert not judged.there
    assert judged.here
    words = ["replay", "capture", str(tmp_path), "--backend", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "mutant-lse-in-base-two: call 0" in " ".join(result.output.split())


def test_a_call_that_the_chip_cannot_serve_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, SMALL["moe.route"][0], "cpu", monkeypatch)
    found = Capture(tmp_path)
    (judged,) = replay(found, chosen(found), hal.Policy.current(backend="mutant-sink-dropped", allow="unverified"))
    assert judged.here is None
    assert "moe.route" in judged.why


def generate(folder: Path, *options: str) -> Any:
    run = [sys.executable, "-m", "hal", "generate", str(CHECKPOINT), "--prompt", "The for", "--max-new-tokens", "2"]
    return CliRunner().invoke(app, ["capture", "--out", str(folder), *options, "--json", "--", *run])


def test_a_run_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_BACKEND", "reference")
    result = generate(tmp_path / "whole", "--ops", "attn.*")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["uses"]["csa.compress.store"]["calls"] == said["uses"]["csa.compress"]["calls"] > 0
    assert not any(use["missing"] for use in said["uses"].values())
    result = CliRunner().invoke(app, ["replay", "capture", str(tmp_path / "whole"), "--backend", "cpu", "--json"])
    calls = json.loads(result.stdout)["calls"]
    assert result.exit_code == 0
    assert len(calls) == len(Capture(tmp_path / "whole").calls)
    assert all(call["there"]["passed"] and call["here"]["passed"] for call in calls)


def test_size_is_bounded_and_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_BACKEND", "cpu")
    result = generate(tmp_path / "small", "--limit", "1", "--per-use", "3")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    full = {use: words["missing"] for use, words in said["uses"].items() if words["missing"]}
    assert full
    assert all("1 MiB" in why for why in full.values())
    assert sum(file.stat().st_size for file in (tmp_path / "small").glob("*.safetensors")) < 1.5 * (1 << 20)
    assert max(words["calls"] for words in said["uses"].values()) <= 3


def test_the_command_s_failure_is_passed_on(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["capture", "--out", str(tmp_path / "a"), "--", "false"])
    assert result.exit_code == 2
    assert "no operator was called" in result.output
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    result = CliRunner().invoke(app, ["capture", "--out", str(tmp_path / "b"), "--", "true"])
    assert "holds something already" in result.output


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "capture"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capturing._Recorder, "_open", {})
        record(folder, SMALL["attn.store"][0], "cpu", patch)
    return folder


def line(change: Any) -> Any:
    def apply(folder: Path) -> None:
        words = json.loads((folder / LINES).read_text())
        change(words)
        (folder / LINES).write_text(json.dumps(words))

    return apply


def tensor_file(change: Any) -> Any:
    def apply(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        file.write_bytes(change(file.read_bytes()))

    return apply


DAMAGE: dict[str, tuple[Any, str]] = {
    "no header": (lambda folder: (folder / HEADER).unlink(), "capture.json"),
    "another format": (lambda folder: (folder / HEADER).write_text('{"format": 2}'), "is of format 2"),
    "a list": (lambda folder: (folder / HEADER).write_text("[]"), "is of format None"),
    "no JSON": (lambda folder: (folder / LINES).write_text("{"), "no JSON in line 1"),
    "not text": (lambda folder: (folder / LINES).write_bytes(b"\xff\xfe"), "cannot be read"),
    "another version": (line(lambda words: words.update(version=99)), "in version 99"),
    "another operator": (line(lambda words: words.update(contract="attn.stare")), "none of that name"),
    "half a line": (line(lambda words: words.pop("outputs")), "without outputs"),
    "no tensors": (lambda folder: next(folder.glob("*.safetensors")).unlink(), "cannot be read"),
    "half the tensors": (tensor_file(lambda data: data[: len(data) // 2]), "cannot be read"),
    "a flipped bit": (tensor_file(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "other bytes"),
    "an unknown tensor": (line(lambda words: words.update(new=[])), "that no call brought"),
    "an unknown type": (line(lambda words: words["arguments"][5].update(type="Path")), "cannot be read: KeyError"),
    "a path for a tensor": (line(lambda words: words.update(new=["../../etc/passwd"])), "that no call brought"),
    "another layout": (
        line(lambda words: words["arguments"][5]["fields"]["layout"]["fields"].update(name="v5")),
        "no cache layout is called 'v5'",
    ),
    "fewer arguments": (line(lambda words: words["arguments"].pop()), "cannot be read: ValueError"),
}


@pytest.mark.parametrize("title", DAMAGE)
def test_damage_is_named(title: str, good: Path, tmp_path: Path) -> None:
    damage, says = DAMAGE[title]
    folder = shutil.copytree(good, tmp_path / "copy")
    damage(folder)
    with pytest.raises(CaptureError, match=re.escape(str(folder)) + ".*" + re.escape(says)):
        again(folder, "cpu")
    result = CliRunner().invoke(app, ["replay", "capture", str(folder), "--backend", "cpu"])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")


def test_a_folder_is_not_written_twice(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptureError, match="holds a capture already"):
        record(good, SMALL["attn.store"][0], "cpu", monkeypatch)


def test_an_operator_that_was_not_recorded_is_named(good: Path) -> None:
    with pytest.raises(UnknownName, match=r"no recorded call fits: moe\.\*\. It has attn\.store"):
        chosen(Capture(good), "moe.*")
