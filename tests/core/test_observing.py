"""HAL_TRACE writes what was called, HAL_CHECK compares live calls with the reference; unset they leave calls alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hal
from hal.conformance.samples.compression import compress, compress_pool
from hal.errors import BadRule, ParityError, UnknownName
from hal.kernel import Kernel
from hal.plugins import Loaded

CALL = hal.Call("moe.route", attributes={"top_k": 2, "scoring": "sigmoid", "scale": 1.0})
LOGITS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def wrong(logits: torch.Tensor, *rest: object, **attributes: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Right for up to three tokens, then the weights are off by a percent."""
    from hal_cpu.experts import route

    weights, experts = route(logits, *rest, **attributes)  # type: ignore[arg-type]
    return weights * (1.01 if len(logits) > 3 else 1.0), experts


def bound() -> object:
    with hal.use(backend="cpu"):
        return hal.bind(CALL)


def test_unset_variables_wrap_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = type(bound())
    monkeypatch.setenv("HAL_CHECK", "attn.*")
    assert type(bound()) is plain
    monkeypatch.setenv("HAL_CHECK", "moe.*")
    assert type(bound()) is not plain


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        (name, text)
        for name, texts in {
            "HAL_TRACE": ("call", "plan:x", "calls:", "values@", "xx@f"),
            "HAL_CHECK": ("/3", "moe.*/0", "moe.*/x"),
        }.items()
        for text in texts
    ],
)
def test_what_cannot_be_read_is_named(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(BadRule, match=variable):
        bound()


@pytest.mark.parametrize(("variable", "text"), [("HAL_TRACE", "calls:moe.rout"), ("HAL_CHECK", "attend/2")])
def test_a_glob_that_fits_no_operator_is_named(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(UnknownName, match=f"{variable}: no operator is called"):
        bound()


@pytest.mark.parametrize("kind", ["plan", "calls", "values:moe.*"])
def test_traces_are_json_lines(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_TRACE", f"{kind}@{tmp_path / 'run.jsonl'}")
    bound()(LOGITS, None, None, None)  # type: ignore[operator]
    (entry,) = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert (entry["contract"], entry["kernel"]) == ("moe.route", "cpu.route")
    if kind == "plan":
        assert "reference.route" in entry["lost"]
        assert entry["parts"] == []
    else:
        assert entry["number"] == 0
        assert entry["arguments"][0]["shape"] == [5, 8]
        assert ("mean" in entry["outputs"][0]) == kind.startswith("values")


def test_a_check_finds_the_call_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CHECK", "moe.*/2")
    route = bound()
    for _ in range(4):
        route(LOGITS, None, None, None)  # type: ignore[operator]
    kernel = Kernel("cpu.wrong", "moe.route", f"{__name__}:wrong")
    monkeypatch.setattr(Kernel, "load", lambda self: wrong)
    monkeypatch.setattr(Loaded, "kernels", lambda loaded, target: [kernel])
    route = bound()
    route(LOGITS[:3], None, None, None)  # type: ignore[operator]
    route(LOGITS, None, None, None)  # type: ignore[operator]  # call 1 is not looked at
    with pytest.raises(ParityError, match=r"moe\.route by cpu\.wrong differs from the reference in call 2"):
        route(LOGITS, None, None, None)  # type: ignore[operator]


def replaced(monkeypatch: pytest.MonkeyPatch, contract: str, function: object) -> None:
    """The CPU backend's kernel of `contract` becomes `function`."""
    load = Kernel.load
    monkeypatch.setattr(Kernel, "load", lambda self: function if self.contract == contract else load(self))


def late(values: torch.Tensor, *rest: object, **attributes: object) -> None:
    """Stores rows one place late: returns what it should and leaves a wrong cache behind."""
    from hal_cpu.compression import store

    store(values.roll(1, 0), *rest, **attributes)  # type: ignore[arg-type]


def forgetful(kv: torch.Tensor, score: torch.Tensor, ape: torch.Tensor, batch: object, state: object, **words: object):
    """Pools rightly and loses the state."""
    from hal_cpu.compression import compress_pool as pool

    pooled = pool(kv, score, ape, batch, state, **words)  # type: ignore[arg-type]
    state.tensor.zero_()  # type: ignore[attr-defined]
    return pooled


@pytest.mark.parametrize(
    ("sample", "part", "function"),
    [
        (next(iter(compress())), "attn.store", late),
        (next(iter(compress_pool())), "attn.compress_pool", forgetful),
    ],
    ids=["a part's cache", "state"],
)
def test_a_check_sees_what_is_left_behind(sample, part, function, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_CHECK", "*")
    monkeypatch.setenv("HAL_BACKEND", "cpu")
    monkeypatch.setenv("HAL_OPS", "attn.compress=!cpu.compress|*")
    hal.bind(sample.call)(*sample.arguments())
    replaced(monkeypatch, part, function)
    with pytest.raises(ParityError, match=rf"{part} by cpu\.\w+ differs from the reference in call 0"):
        hal.bind(sample.call)(*sample.arguments())
    monkeypatch.setenv("HAL_CHECK", "attn.compress*")
    with pytest.raises(ParityError) as raised:
        hal.bind(sample.call)(*sample.arguments())
    assert ("HAL_CHECK='*'" in raised.value.fix) == (part == "attn.store")


def test_a_trace_names_the_parts_of_a_composite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_TRACE", f"calls@{tmp_path / 'run.jsonl'}")
    monkeypatch.setenv("HAL_BACKEND", "cpu")
    monkeypatch.setenv("HAL_OPS", "attn.compress=!cpu.compress|*")
    sample = next(iter(compress()))
    hal.bind(sample.call)(*sample.arguments())
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["contract"] for line in lines] == ["attn.compress_pool", "attn.store", "attn.compress"]
    assert lines[0]["call"] == f"{sample.title}.compress_pool"


def test_a_trace_has_the_call_that_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_TRACE", f"calls@{tmp_path / 'run.jsonl'}")
    route = bound()
    route(LOGITS, None, None, None)  # type: ignore[operator]
    with pytest.raises(hal.HalError):
        route(None, None, None, None)  # type: ignore[operator]
    good, bad = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert "error" not in good
    assert (bad["number"], "outputs" in bad) == (1, False)
    assert "cpu.route raised" in bad["error"]


def test_generating_text_under_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from hal.cli.app import app

    checkpoint = Path(__file__).resolve().parents[2] / "examples" / "tiny-v4"
    words = ["generate", str(checkpoint), "--prompt", "The for", "--max-new-tokens", "2"]
    monkeypatch.setenv("HAL_BACKEND", "cpu")
    monkeypatch.setenv("HAL_CHECK", "attn.*/50")
    assert CliRunner().invoke(app, words).exit_code == 0
    replaced(monkeypatch, "attn.store", late)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "attn.store by cpu.store differs from the reference" in " ".join(result.output.split())
