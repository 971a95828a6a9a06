"""HAL_TRACE writes what was called, HAL_CHECK compares live calls with the reference; unset they leave calls alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hal
from hal.errors import BadRule, ParityError
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


@pytest.mark.parametrize("kind", ["plan", "calls", "values:moe.*"])
def test_traces_are_json_lines(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_TRACE", f"{kind}@{tmp_path / 'run.jsonl'}")
    bound()(LOGITS, None, None, None)  # type: ignore[operator]
    (entry,) = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert (entry["contract"], entry["kernel"]) == ("moe.route", "cpu.route")
    if kind == "plan":
        assert "reference.route" in entry["lost"]
    else:
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
