"""What `hal compile cuda` compiles is what is launched, and what is no good is named."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

import hal_triton.kernels  # noqa: E402
import triton.language as tl  # noqa: E402
from hal_cuda.compiled import fault_of, wanted  # noqa: E402
from hal_cuda.toolchain import CHIPS, Machine, build  # noqa: E402
from hal_triton.compiling import Source, specialised  # noqa: E402
from hal_triton.launch import Launch  # noqa: E402
from hal_triton.tuning import Config, table  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from hal.cli.app import app  # noqa: E402
from hal.target import Target, described  # noqa: E402


def chip(name: str) -> Target:
    return next(target for target in described() if target.name == name)


def test_every_kernel_and_every_configuration_is_launched_somewhere() -> None:
    found = [one for name in ("cuda:sm90", "cuda:sm100", "cuda:gfx942") for one in wanted(chip(name)).values()]
    assert {one.entry for one in found} == set(table())
    folder = Path(hal_triton.kernels.__file__).parent
    source = "".join(file.read_text() for file in folder.glob("*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE))
    assert {one.source.function.__name__ for one in found} == kernels
    assert all(one.serves for one in found)


@triton.jit
def spilling(x, out, WIDTH: tl.constexpr):
    """More values than there are registers: all are needed again behind the sum of all."""
    at = tl.arange(0, WIDTH)
    values = tl.load(x + at)
    tl.store(out + at, values - tl.sum(values))


@triton.jit
def product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


UNITS = [("sm80", "HMMA"), ("sm90", "HGMMA"), ("sm100", "UTCHMMA"), ("sm120", "HMMA"), ("gfx942", "MFMA_BF16")]


@pytest.mark.parametrize(("arch", "name"), UNITS)
def test_a_product_is_done_by_the_matrix_unit(arch: str, name: str) -> None:
    arguments: dict[str, Any] = {"a": "*bf16:16", "b": "*bf16:16", "out": "*fp32:16", "N": (128,)}
    made = build(Source(product, arguments, 4, 1), CHIPS[arch])
    assert made.products == {"16 bit"}
    assert made.matrix[0] == name
    assert made.missing == []


@pytest.mark.parametrize("arch", ["sm90", "gfx942"])
def test_spills_are_afault_of(arch: str) -> None:
    made = build(Source(spilling, {"x": "*fp32:16", "out": "*fp32:16", "WIDTH": (65536,)}, 1, 1), CHIPS[arch])
    assert made.spilled > 0
    assert "spilled" in fault_of(made, CHIPS[arch])


def test_too_much_shared_memory_and_a_product_without_its_unit_are_faults() -> None:
    assert "shared memory" in fault_of(Machine(32, 0, 164 << 10, 4, Counter(), 1), CHIPS["sm80"])
    assert fault_of(Machine(32, 0, 163 << 10, 4, Counter(), 1), CHIPS["sm80"]) == ""
    fp8 = Machine(32, 0, 0, 4, Counter(HMMA=4), 4, frozenset({"fp8"}))
    assert fault_of(fp8, CHIPS["sm90"]) == "it multiplies fp8 operands and uses no matrix unit that does"
    assert fault_of(Machine(32, 0, 0, 4, Counter(QGMMA=4), 4, frozenset({"fp8"})), CHIPS["sm90"]) == ""


def test_types_are_specialised_as_triton_does() -> None:
    import torch

    x = torch.zeros(64)
    launch = Launch(product, (x, x[1:], x.to(torch.bfloat16)), {"N": 16}, Config("none", {}, 4, 1))
    _, source, values = specialised(launch)
    assert source.arguments == {"a": "*fp32:16", "b": "*fp32", "out": "*bf16:16", "N": (16,)}
    assert values == "N=16"


def test_every_described_chip_has_limits() -> None:
    assert {target.name for target in described() if target.backend == "cuda"} == {f"cuda:{name}" for name in CHIPS}


def test_the_command() -> None:
    result = CliRunner().invoke(app, ["compile", "cuda:sm90", "--kernel", "combine", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {(one["chip"], one["kernel"], one["fault"]) for one in found} == {("cuda:sm90", "combine", "")}
    assert all(one["facts"]["registers"] > 0 and one["facts"]["spilled"] == 0 for one in found)


@pytest.mark.parametrize(("words", "text"), [(("cuda:sm1",), "no chip is called"), (("cpu",), "compiles nothing")])
def test_what_cannot_be_compiled_is_said(words: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(app, ["compile", *words])
    assert result.exit_code == 2
    assert text in result.stderr
