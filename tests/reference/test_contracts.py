"""What contracts declare agrees with what references take, and every one is complete."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

from hal.constraints import layout
from hal.errors import UnknownName
from hal.formats import ACTIVATIONS, SCHEMES
from hal.ops import CONTRACTS, get, matmul
from hal.planning import Call
from hal.target import Target

EACH = pytest.mark.parametrize("name", CONTRACTS)


def reference(name: str) -> Any:
    module, function = CONTRACTS[name].reference.split(":")
    return getattr(importlib.import_module(module), function)


def declared(name: str) -> tuple[list[str], list[str]]:
    """Names of arguments and of attributes."""
    signature = CONTRACTS[name].parsed
    return [argument.name for argument in signature.arguments], list(signature.attributes)


def test_all_fifteen_are_there() -> None:
    attention = "compress compress_pool store select index_scores attend"
    experts = "route dispatch experts combine ffn"
    names = [f"attn.{name}" for name in attention.split()] + [f"moe.{name}" for name in experts.split()]
    assert list(CONTRACTS) == [*names, "quant.quantize", "quant.matmul", "mhc.pre", "mhc.post"]


@EACH
def test_reference_takes_what_the_signature_declares(name: str) -> None:
    parameters = inspect.signature(reference(name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "parts"]
    assert (positional, keywords) == declared(name)
    assert any(p.name == "parts" for p in parameters) == bool(CONTRACTS[name].parts)


@EACH
def test_every_edge_and_every_argument_is_said(name: str) -> None:
    contract = CONTRACTS[name]
    assert contract.doc.endswith(".")
    assert "empty" in contract.edges
    assert all(sentence.endswith(".") for sentence in contract.edges.values())
    text = inspect.getdoc(reference(name)) or ""
    assert text.startswith(f"`{name}`")


@EACH
def test_parts_take_attributes_from_their_composite(name: str) -> None:
    for part in CONTRACTS[name].parts:
        assert set(declared(part)[1]) <= set(declared(name)[1])


def test_choices_are_those_of_the_formats() -> None:
    assert matmul.ACTIVATIONS == ACTIVATIONS
    assert matmul.SCHEMES == SCHEMES


def test_unknown_names_get_a_hint() -> None:
    assert get("attn.attend") is CONTRACTS["attn.attend"]
    with pytest.raises(UnknownName, match=r"Did you mean 'attn\.attend'"):
        get("attn.atend")


def test_contracts_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import hal.ops; print(len(hal.ops.CONTRACTS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "15", done.stderr


def test_a_call_that_promises_nothing_does_not_reach_kernels_that_need_a_promise() -> None:
    target = Target("test", "cpu")
    needed = layout("rows").one_of("selected"), layout("lse").one_of("none")
    silent = Call("attn.attend").facts(target)
    assert [str(c.reason(silent)) for c in needed] == [
        "layout rows is any, wanted one of selected",
        "layout lse is wanted, wanted one of none",
    ]
    promised = Call("attn.attend", layouts={"rows": "selected", "lse": "none"}).facts(target)
    assert [c.reason(promised) for c in needed] == [None, None]
