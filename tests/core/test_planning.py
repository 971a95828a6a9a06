"""Plans are total, deterministic and complete: every loser has its reason, every hole is named, nothing is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hal
from hal.constraints import Facts, attribute, dim, dtype, layout, needs
from hal.errors import NoKernel, UnknownName, UnknownVariable
from hal.kernel import Kernel
from hal.planning import cover
from hal.policy import Policy

ROUTE = hal.Call(
    "moe.route", sizes={"experts": 8, "top_k": 2}, attributes={"top_k": 2, "scoring": "sigmoid", "scale": 1.0}
)


def kernel(name: str, *constraints: object) -> Kernel:
    return Kernel(name, "moe.route", "math:sqrt", constraints)  # type: ignore[arg-type]


def facts(low: int, high: int) -> Facts:
    return Facts({"tokens": (low, high)}, {}, {}, {}, frozenset())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5), st.integers(0, 30), st.integers(0, 30))
def test_coverage_agrees_with_trying_every_size(cuts: list[tuple[int, int]], a: int, b: int) -> None:
    low, high = sorted((a, b))
    kernels = [kernel(str(i), dim("tokens").between(*sorted(cut))) for i, cut in enumerate(cuts)]
    _, hole = cover(kernels, facts(low, high))
    covered = all(any(min(c) <= size <= max(c) for c in cuts) for size in range(low, high + 1))
    assert (hole is None) == (covered or not cuts)


def test_reasons_say_wanted_and_got() -> None:
    known = Facts({"head_dim": 576}, {"q": "float16"}, {"window": "v4_640"}, {"ratio": 8}, frozenset())
    refused = [
        dim("head_dim").one_of(128, 512),
        dtype("q").one_of("bfloat16"),
        layout("window").one_of("v4_584"),
        attribute("ratio").one_of(4, 128),
        needs("fp8_mma"),
    ]
    assert [str(c.reason(known)) for c in refused] == [
        "dim head_dim is 576, wanted one of 128, 512",
        "dtype q is float16, wanted one of bfloat16",
        "layout window is v4_640, wanted one of v4_584",
        "attribute ratio is 8, wanted one of 4, 128",
        "chip is without it, wanted feature fp8_mma",
    ]
    assert dtype("absent").one_of("bfloat16").reason(known) is None


def test_all_blockers_at_once() -> None:
    calls = [
        hal.Call("quant.matmul", name="a", layouts={"weight": "unknown"}, attributes={"activation": "none"}),
        hal.Call("attn.attend", name="b", layouts={"window": "unknown"}),
    ]
    with pytest.raises(NoKernel) as caught:
        hal.plan(calls, policy=Policy.current(backend="cpu"))
    assert len(caught.value.blockers) == 2


def test_rules_order_and_exclude() -> None:
    with hal.use(backend="cpu", allow="reference", ops="moe.*=reference.*|cpu.*"):
        assert hal.plan([ROUTE]).choices[0].winner == "reference.route"
    with hal.use(backend="cpu", ops="moe.route=!cpu.route"), pytest.raises(NoKernel, match="excluded by HAL_OPS"):
        hal.plan([ROUTE])


def test_arguments_beat_use_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_BACKEND", "from-environment")
    assert Policy.current().origins["backend"] == "HAL_BACKEND"
    with hal.use(backend="from-use"):
        assert Policy.current().backend == "from-use"
        assert Policy.current(backend="argument").origins["backend"] == "argument"


def test_typos_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_BACKENDS", "cpu")
    with pytest.raises(UnknownVariable, match="Did you mean 'HAL_BACKEND'"):
        Policy.current()
    monkeypatch.delenv("HAL_BACKENDS")
    with pytest.raises(UnknownName, match="Did you mean 'requantize'"):
        Policy.current(allow="requantise")


def test_equal_decisions_have_equal_fingerprints() -> None:
    with hal.use(backend="cpu"):
        assert hal.plan([ROUTE]).fingerprint == hal.plan([ROUTE]).fingerprint
    with hal.use(backend="reference"):
        other = hal.plan([ROUTE]).fingerprint
    with hal.use(backend="cpu"):
        assert hal.plan([ROUTE]).fingerprint != other


def test_parts_know_sizes_that_no_signature_names() -> None:
    """`inter` is a size of weights, which kernels of `moe.ffn` and of `moe.experts` may ask for."""
    call = hal.Call(
        "moe.ffn",
        sizes={"hidden": 64, "top_k": 2, "inter": 48},
        dtypes={"x": "float32"},
        layouts={"w13": "float32", "w2": "float32"},
        attributes={"experts": 4, "clamp": 10.0, "activation": "none"},
    )
    plan = hal.plan([call], policy=Policy.current(backend="reference", allow="reference,unverified"))
    sizes = {part.call.contract: dict(part.call.sizes) for part in plan.choices[0].parts}
    assert sizes["moe.experts"] == {"hidden": 64, "inter": 48}
    assert "top_k" not in sizes["moe.combine"]
