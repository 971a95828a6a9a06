"""HAL_ALLOW permits, HAL_OPS names, hal.lock holds: each refusal says which word or which difference."""

from __future__ import annotations

from pathlib import Path

import pytest

import hal
from hal import permission
from hal.constraints import dim
from hal.errors import ConfigError, Drift, Forbidden, NoKernel, Uncovered, UnknownName
from hal.kernel import Kernel
from hal.lock import Lock
from hal.plugins import Loaded

ROUTE = hal.Call("moe.route", attributes={"top_k": 2, "scoring": "sigmoid", "scale": 1.0})


def only(monkeypatch: pytest.MonkeyPatch, *kernels: Kernel) -> None:
    """The CPU has these kernels and no others."""
    monkeypatch.setattr(Loaded, "kernels", lambda loaded, target: list(kernels))


def test_a_reference_serves_only_where_it_is_allowed() -> None:
    with hal.use(backend="cpu", ops="moe.route=reference.route"):
        with pytest.raises(Forbidden, match="HAL_ALLOW=reference"):
            hal.plan([ROUTE])
        with hal.use(allow="reference"):
            assert hal.plan([ROUTE]).choices[0].winner == "reference.route"


def test_nothing_but_the_reference_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    with hal.use(backend="cpu"), pytest.raises(NoKernel, match=r"no kernel is installed.*HAL_ALLOW=reference"):
        hal.plan([ROUTE])


def test_nondeterministic_kernels_need_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, Kernel("cpu.atomic", "moe.route", "math:sqrt", deterministic=False))
    with hal.use(backend="cpu"):
        with pytest.raises(Forbidden, match="HAL_ALLOW=nondeterministic"):
            hal.plan([ROUTE])
        assert hal.plan([ROUTE], policy=hal.Policy.current(allow="nondeterministic,unverified"))


def test_without_unverified_a_tier_below_verified_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(monkeypatch, Kernel("cpu.claimed", "moe.route", "math:sqrt"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with (
        hal.use(backend="cpu", allow="host"),
        pytest.raises(Forbidden, match=r"tier is declared.*HAL_ALLOW=unverified"),
    ):
        hal.plan([ROUTE])


def test_a_hole_in_a_range_is_uncovered(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, Kernel("cpu.small", "moe.route", "math:sqrt", (dim("tokens").between(0, 4096),)))
    with hal.use(backend="cpu"), pytest.raises(Uncovered, match=r"tokens 4097\.\.1048576 is served by no kernel"):
        hal.plan([ROUTE])


def test_a_conversion_needs_its_word() -> None:
    with pytest.raises(Forbidden, match="HAL_ALLOW=requantize,unverified"):
        permission.require("requantize", "FP8 weights would become int8", where="mlu")
    with hal.use(allow="requantize"):
        permission.require("requantize", "FP8 weights would become int8", where="mlu")


@pytest.mark.parametrize(
    ("rule", "near"),
    [("moe.rout=cpu.*", "moe.route"), ("moe.route=cpu.rote", "cpu.route"), ("moe.route=!xyz", "Use one")],
)
def test_rules_name_what_there_is(rule: str, near: str) -> None:
    with hal.use(backend="cpu", ops=rule), pytest.raises(UnknownName, match=near):
        hal.plan([ROUTE])


def test_a_lock_holds_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "hal.lock"
    with hal.use(backend="cpu"):
        made = hal.plan([ROUTE])
    made.lock.write(path)
    assert Lock.read(path) == made.lock
    monkeypatch.setenv("HAL_CONFIG", str(path))
    again = hal.plan([ROUTE])
    assert (again.target.name, again.fingerprint) == ("cpu", made.fingerprint)
    with pytest.raises(Drift, match="other is not in the lock"):
        hal.plan([hal.Call("moe.route", name="other", attributes=ROUTE.attributes)])
    only(monkeypatch, Kernel("cpu.route", "moe.route", "math:sqrt", version=2))
    with pytest.raises(Drift, match=r"moe\.route@1: cpu\.route@2, locked is moe\.route@1: cpu\.route@1"):
        hal.plan([ROUTE])
    monkeypatch.undo()
    with hal.use(backend="reference"):
        monkeypatch.setenv("HAL_CONFIG", str(path))
        with pytest.raises(Drift, match="the chip is reference, locked is cpu"):
            hal.plan([ROUTE])


@pytest.mark.parametrize(
    "text", ["[calls]\n", "format = 1\ntarget = 3\n[calls]\n", "format = 1\ntarget = 'cpu'\n[calls]\na = 1\n"]
)
def test_a_broken_lock_is_named(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hal.lock").write_text(text)
    monkeypatch.setenv("HAL_CONFIG", str(tmp_path / "hal.lock"))
    with pytest.raises(ConfigError, match="not a lock of format 1"):
        hal.plan([ROUTE])
