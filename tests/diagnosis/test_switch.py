"""Switching operators to the reference, and the whole search, on plans only: no kernel runs, no process starts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hal
from hal.diagnosis.bisect import bisect
from hal.diagnosis.command import Command, Ended
from hal.diagnosis.switch import line, on_kernels, variables
from hal.errors import ConfigError
from hal.models.deepseek_v4.calls import Numerics, calls
from hal.models.deepseek_v4.config_reader import load
from hal.planning import Choice

TINY = load(Path(__file__).resolve().parents[2] / "examples" / "tiny-v4")
CALLS = calls(TINY, Numerics.published(TINY))
USED = {"attn.store", "attn.attend", "attn.compress", "attn.select", "moe.route", "moe.ffn", "quant.matmul"}


def lines(choice: Choice) -> Iterator[dict[str, Any]]:
    """As HAL_TRACE=plan writes them."""
    for part in choice.parts:
        yield from lines(part)
    parts = [part.call.contract for part in choice.parts]
    yield {"call": choice.call.title, "contract": choice.call.contract, "kernel": choice.winner, "parts": parts}


def planned(words: Mapping[str, str], **used: str) -> list[dict[str, Any]]:
    """The plan's lines of a run with these variables on top of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in words.items():
            patch.setenv(name, value)
        with hal.use(**used):
            return [line for choice in hal.plan(CALLS).choices for line in lines(choice)]


class Planned(Command):
    """A command that only plans; it is bad where `fails` says so of the operators that run on kernels."""

    def __init__(self, fails: Callable[[set[str]], int | None], **used: str) -> None:
        super().__init__(["plan"])
        object.__setattr__(self, "fails", fails)
        object.__setattr__(self, "used", used)

    def run(self, variables: Mapping[str, str], trace: str = "plan") -> Ended:
        told = planned(variables, **self.used)  # type: ignore[attr-defined]
        kept = on_kernels(told)
        code = self.fails(set(kept))  # type: ignore[attr-defined]
        return Ended(code, repr(sorted(kept)).encode(), "", 0.0, tuple(told) if trace == "plan" else ())


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_BACKEND", "cpu")


def test_every_set_of_operators_can_be_kept() -> None:
    """Composites too: their own kernels go, and their parts go to the reference unless they are kept themselves."""
    operators = on_kernels(planned({}))
    assert set(operators) == USED
    assert operators["attn.select"] == ("cpu.select",)
    for kept in [set(), USED, *({name} for name in USED), *(USED - {name} for name in USED)]:
        off = tuple(name for name in operators if name not in kept)
        plan = planned(variables(off, operators, hal.Policy.current()))
        assert set(on_kernels(plan)) == kept
        if "attn.compress" not in kept:
            stores = {e["kernel"] for e in plan if e["call"] == "csa.compress.store"}
            assert stores == {"cpu.store" if "attn.store" in kept else "reference.store"}


def test_the_parts_of_a_composite_without_a_kernel_are_operators() -> None:
    rule = {"HAL_OPS": "attn.compress=!cpu.compress|*"}
    assert {"attn.compress_pool", "attn.store"} <= set(on_kernels(planned(rule)))
    assert "attn.compress" not in on_kernels(planned(rule))


def test_rules_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_OPS", "attn.compress=!cpu.*|*;attn.*=cpu.*")
    monkeypatch.setenv("HAL_ALLOW", "unverified,host")
    operators = on_kernels(planned({}))
    assert "attn.compress" not in operators
    words = variables(["attn.store"], operators, hal.Policy.current())
    assert words["HAL_OPS"] == "attn.store=reference.*;attn.compress=!cpu.*|*;attn.*=cpu.*"
    assert words["HAL_ALLOW"] == "host,reference,unverified"
    assert set(on_kernels(planned(words))) == set(operators) - {"attn.store"}
    assert shlex.split(line(words)) == [f"{name}={value}" for name, value in words.items()]


def test_a_lock_keeps_its_chip_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hal.plan(CALLS).lock.write(tmp_path / "hal.lock")
    monkeypatch.setenv("HAL_CONFIG", str(tmp_path / "hal.lock"))
    found = bisect(Planned(lambda kept: "moe.route" in kept))
    assert [guilty.operators for guilty in found.guilty] == [("moe.route",)]
    assert "HAL_CONFIG='' HAL_BACKEND=cpu" in found.workaround


groups = st.lists(st.sets(st.sampled_from(sorted(USED)), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups)
def test_every_guilty_set_is_found_and_worked_around(guilty: list[set[str]]) -> None:
    def fails(kept: set[str]) -> int:
        return any(group <= kept for group in guilty)

    found = bisect(Planned(fails))
    least = [group for group in guilty if not any(other < group for other in guilty)]
    for accused in found.guilty:
        assert set(accused.operators) in least
    words = dict(word.split("=", 1) for word in shlex.split(found.workaround))
    assert not fails(set(on_kernels(planned(words))))
    assert len({tried.kept for tried in found.tried}) == len(found.tried) <= found.runs


def test_by_output() -> None:
    found = bisect(Planned(lambda kept: 0), output=True)
    assert {tried.says for tried in found.tried if tried.kept} == {"other output"}
    assert len(found.guilty) == len(USED)


@pytest.mark.parametrize("cannot", [None, 125], ids=["the time limit", "the command's word"])
def test_what_cannot_be_judged_is_not_bad(cannot: int | None) -> None:
    """Here no single operator can be judged, so pairs are the least that is known to be bad."""
    found = bisect(Planned(lambda kept: cannot if len(kept) == 1 else bool(kept)))
    assert found.guilty
    assert all(len(accused.operators) == 2 for accused in found.guilty)
    assert {tried.state for tried in found.tried if len(tried.kept) == 1} == {"unclear"}


@pytest.mark.parametrize(
    ("fails", "words", "says"),
    [
        (lambda kept: 0, {}, "As it is the command is good: exit code 0."),
        (lambda kept: 125, {}, "As it is the command cannot be judged: exit code 125."),
        (lambda kept: 1, {}, "The command fails with every operator on the reference as well (exit code 1)"),
        (lambda kept: 1, {"HAL_BACKEND": "reference"}, "the reference serves every operator"),
    ],
)
def test_where_no_operator_is_guilty(
    fails: Callable[[set[str]], int], words: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    found = bisect(Planned(fails))
    assert (found.guilty, found.workaround) == ([], "")
    assert says in found.missing


def test_a_program_with_rules_of_its_own_is_named() -> None:
    with pytest.raises(ConfigError, match=r"should have run on the reference and was served by cpu\.\w+"):
        bisect(Planned(bool, ops="attn.*=cpu.*"))
