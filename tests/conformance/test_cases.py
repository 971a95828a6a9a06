"""Cases follow from declarations: named once, the same every time, inside and outside of every constraint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hal.conformance.cases import cases_of, find, subjects
from hal.conformance.edges import eligible, inside, outside
from hal.conformance.samples import samples
from hal.conformance.samples.variants import variant
from hal.conformance.trial import Subject
from hal.constraints import attribute, check, dim, dtype, layout, needs
from hal.errors import UnknownName
from hal.kernel import Kernel
from hal.ops import CONTRACTS
from hal.target import Target

CPU = subjects("cpu")
HERE = Target("cpu", "cpu")


def names(subject: Subject, quick: bool = False) -> list[str]:
    return [case.name for case in cases_of(subject.kernel, subject.target, quick)]


@pytest.mark.parametrize("subject", CPU, ids=lambda subject: subject.kernel.id)
def test_names_are_unique_repeatable_and_quick_ones_a_part_of_all(subject: Subject) -> None:
    every = names(subject)
    assert len(set(every)) == len(every) > 20
    assert names(subject) == every
    assert set(names(subject, quick=True)) < set(every)


def test_every_contract_has_laws_samples_and_fields_to_vary() -> None:
    for name, contract in CONTRACTS.items():
        assert contract.laws, name
        assert len(list(samples(name))) > 5
        assert variant(name, {}) is not None


def test_a_name_is_a_reproduction() -> None:
    name = "quant.matmul/cpu.matmul/parity/tokens=7/256x384/mxfp4/e4m3_32"
    case, subject = find(name, "cpu")
    assert case.name == name
    margins = [find(name, "cpu")[0].run(subject) for _ in range(2)]
    assert margins[0] == margins[1]
    assert 0 <= (margins[0] or 0) <= 1
    with pytest.raises(UnknownName, match="Copy it from"):
        find(name + "x", "cpu")


def kernel(contract: str, *constraints: object, code: str = "hal_cpu.matmul:matmul") -> Kernel:
    return Kernel("cpu.matmul", contract, code, constraints)  # type: ignore[arg-type]


def test_inside_edges_bring_other_fields_along() -> None:
    limited = kernel(
        "quant.matmul",
        layout("weight").one_of("w8a8_int8", "mxfp8"),
        attribute("activation").one_of("int8_token", "e4m3_32"),
        dim("features").between(64, 640),
        check(
            lambda facts: (facts.layouts["weight"] == "mxfp8") == (facts.attributes["activation"] == "e4m3_32"),
            says="mxfp8 with e4m3_32 only",
            yes=({"weight": "mxfp8", "activation": "e4m3_32"},),
        ),
    )
    seen = [s for s in samples("quant.matmul") if eligible(limited, s.call, HERE)]
    assert {s.layouts["weight"] for s in seen} == {"w8a8_int8", "mxfp8"}
    found = dict(inside(limited, HERE, seen))
    assert set(found) == {"features=64", "features=640"}
    assert all(eligible(limited, sample.call, HERE) for sample in found.values())


def test_outside_edges_of_every_kind_of_constraint() -> None:
    limited = kernel(
        "quant.matmul",
        dtype("x").one_of("bfloat16"),
        layout("weight").one_of("mxfp4"),
        attribute("activation").one_of("e4m3_128"),
        dim("features").multiple_of(128),
        dim("tokens").between(1, 64),
        needs("fp8_mma"),
    )
    chip = replace(HERE, features=frozenset({"fp8_mma"}))
    seen = [s for s in samples("quant.matmul") if eligible(limited, s.call, chip)]
    titles = {beyond.title for beyond in outside(limited, chip, seen)}
    assert {"x=float32", "weight=bf16", "activation=none", "features=129", "tokens=0", "tokens=65"} <= titles
    assert "without fp8_mma" in titles
    assert not any(eligible(limited, beyond.call, beyond.target) for beyond in outside(limited, chip, seen))


def test_an_edge_that_other_constraints_refuse_is_a_case_too() -> None:
    hiding = kernel(
        "quant.matmul",
        dim("features").between(64, 640),
        check(lambda facts: facts.dims["features"] != 640, says="features that I like"),
    )
    seen = [s for s in samples("quant.matmul") if eligible(hiding, s.call, HERE)]
    found = dict(inside(hiding, HERE, seen))
    assert not eligible(hiding, found["features=640"].call, HERE)
    assert "quant.matmul/cpu.matmul/edge/features=640" in {case.name for case in cases_of(hiding, HERE)}


def test_variants_have_what_was_asked() -> None:
    sample = variant("attn.attend", {("dtype", "q"): "float16", ("dim", "heads"): 3})
    assert sample is not None
    assert (sample.dtypes["q"], sample.sizes["heads"]) == ("float16", 3)
    assert sample.arguments()[0].shape[1] == 3
    assert variant("attn.attend", {("dim", "hidden"): 3}) is None


def test_a_kernel_of_sizes_that_no_sample_has_gets_one_of_its_own() -> None:
    fixed = Kernel(
        "cpu.attend",
        "attn.attend",
        "hal_cpu.attention:attend",
        (dim("heads").one_of(48), dtype("q").one_of("bfloat16"), layout("window").one_of("v4_584")),
    )
    assert not [sample for sample in samples("attn.attend") if eligible(fixed, sample.call, HERE)]
    parity = [case for case in cases_of(fixed, HERE) if case.kind == "parity"]
    assert [case.sample.sizes["heads"] for case in parity if case.sample] == [48]
    parity[0].run(Subject(fixed, HERE))
