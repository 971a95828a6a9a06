"""What `hal compile ascend` reads from a plan of AscendNPU-IR, and what it says where the compiler is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("hal_triton")

from hal_ascend import toolchain
from hal_ascend.compiled import fault_of
from hal_ascend.triton import triton_kernels
from typer.testing import CliRunner

from hal.cli.app import app
from hal.ops import CONTRACTS
from hal.target import described

PLAN = """
module attributes {spec = <"UB_SIZE", 1572864 : i32>, <"L1_SIZE", 4194304 : i32>, <"L0C_SIZE", 1048576 : i32>} {
  func.func @one_mix_aic() {
    %c8192_i64 = arith.constant 8192 : i64
    %0 = hivm.hir.pointer_cast(%c8192_i64) : memref<4x8x16x16xbf16, #hivm.address_space<cbuf>>
    func.call @mma_tile_bfloat16_t_to_float_tb(%0) : (i64) -> ()
  }
  func.func @one_mix_aiv() {
    %0 = llvm.mlir.constant(64 : i64) : i64
    %1 = llvm.mlir.constant(1024 : i64) : i64
    %2 = hivm.hir.pointer_cast(%0, %1) : memref<2x256xf32, #hivm.address_space<ub>>
    %3 = hivm.hir.pointer_cast(%0) : memref<2x8xi1, strided<[8, 1]>, #hivm.address_space<ub>>
  }
}
"""


def test_a_plan_is_read() -> None:
    machine = toolchain.read(
        PLAN, True, "[NOTE] Ub overflow detected; automatically set enable-code-motion to false and"
    )
    assert machine.used == {"UB KiB": 1024 + 2048, "L1 KiB": 8192 + 16384, "L0C KiB": 0}
    assert machine.limit == {"UB KiB": 196608, "L1 KiB": 524288, "L0C KiB": 131072}
    assert (machine.cores, machine.products) == ("cube + vector", ("bfloat16_t_to_float",))
    assert machine.retries == ("enable-code-motion",)
    assert fault_of(machine) == ""


def test_overflow_and_a_product_without_a_cube_are_faults() -> None:
    large = toolchain.read(PLAN.replace("2x256xf32", "2x65536xf32"), True)
    assert fault_of(large) == f"{1024 + 524288} bytes of UB, the chip has 196608"
    assert (
        fault_of(toolchain.read(PLAN.replace("@mma_tile", "@copy"), True)) == "it multiplies matrices and uses no cube"
    )
    assert fault_of(toolchain.read(PLAN.replace("@mma_tile", "@copy"), False)) == ""


@pytest.mark.skipif(find_spec("ascendnpuir") is not None, reason="the compiler is installed")
def test_without_the_compiler_it_is_said_how_to_get_it() -> None:
    result = CliRunner().invoke(app, ["compile", "ascend:a2"])
    assert result.exit_code == 2
    assert "triton-ascend or ascendnpu-ir is not installed" in result.stderr
    assert "make compile-ascend" in result.stderr


@pytest.mark.parametrize("chip", ["ascend:a2", "ascend:a3", "ascend:a5"])
def test_every_contract_with_a_triton_kernel_has_one_here(chip: str) -> None:
    target = next(target for target in described() if target.name == chip)
    kernels = triton_kernels(target)
    assert {kernel.contract for kernel in kernels} == set(CONTRACTS) - {"moe.ffn"}  # a composite of the others
    assert all(kernel.id.endswith(".triton") and not kernel.capturable for kernel in kernels)
