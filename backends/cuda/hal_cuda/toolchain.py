"""Compile Triton kernels for chips that are not here and read what the compiler made of them.

Triton brings ptxas, nvdisasm, cuobjdump and AMD's code generator along, so a kernel can be compiled down to machine
code without a driver. A compile that succeeds proves little: registers, spills, shared memory and instructions are
read from what came out.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from hal_triton.compiling import Source
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Chip:
    """What bounds a block on one architecture; memory in KiB.

    Attributes:
        target: what Triton compiles for.
        shared: shared memory that one block may ask for.
        shared_of_all: shared memory of a multiprocessor.
        reserved: shared memory that the system takes of each block.
        warps: resident warps of a multiprocessor.
        registers: 32-bit registers of a multiprocessor.
    """

    target: GPUTarget
    shared: int
    shared_of_all: int
    reserved: int
    warps: int
    registers: int = 65536


def _nvidia(arch: int, shared: int, shared_of_all: int, warps: int) -> Chip:
    return Chip(GPUTarget("cuda", arch, 32), shared, shared_of_all, 1, warps)


CHIPS = {
    "sm80": _nvidia(80, 163, 164, 64),
    "sm89": _nvidia(89, 99, 100, 48),
    "sm90": _nvidia(90, 227, 228, 64),
    "sm100": _nvidia(100, 227, 228, 64),
    "sm120": _nvidia(120, 99, 100, 48),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), 64, 64, 0, 32, 131072),
}
"""CUDA C++ programming guide, compute capabilities; AMD CDNA3 instruction set architecture, sections 1.2 and 3.6."""

MATRIX = {
    "16 bit": ("HMMA", "HGMMA", "UTCHMMA", "MFMA_BF16", "MFMA_F16", "MFMA_XF32"),
    "fp8": ("QMMA", "QGMMA", "UTCQMMA", "MFMA_FP8"),
    "int8": ("IMMA", "IGMMA", "UTCIMMA", "MFMA_I8"),
    "scaled": ("OMMA", "QMMA", "UTCOMMA", "UTCQMMA"),
}
"""Instructions of the matrix units by what they multiply: of warps (sm80, 89, 120), warp groups (sm90), tensor memory
(sm100), and AMD's by operand."""

OPERANDS = {"bf16": "16 bit", "f16": "16 bit", "f32": "16 bit", "f8E4M3FN": "fp8", "i8": "int8"}
"""Element types of Triton's intermediate language. float32 is multiplied as tf32, by the unit of 16-bit products."""


@dataclass(frozen=True)
class Machine:
    """What the compiler made of a kernel on one chip."""

    registers: int
    spilled: int
    shared: int
    warps: int
    instructions: Counter[str]
    instruction_count: int
    products: frozenset[str] = frozenset()

    @property
    def matrix(self) -> list[str]:
        """The matrix instructions that are there, most used first."""
        names = {name for group in MATRIX.values() for name in group if self.instructions[name]}
        return sorted(names, key=lambda name: -self.instructions[name])

    @property
    def missing(self) -> list[str]:
        """Products that the kernel asks for and no matrix instruction computes."""
        return [what for what in sorted(self.products) if not any(self.instructions[x] for x in MATRIX[what])]

    def occupancy(self, chip: Chip) -> float:
        """Resident warps over the chip's limit, from registers and shared memory."""
        per_block = -(-self.registers // 8) * 8 * chip.target.warp_size * self.warps
        blocks = min(chip.registers // max(1, per_block), chip.warps // self.warps, 32)
        if self.shared:
            blocks = min(blocks, chip.shared_of_all * 1024 // (self.shared + chip.reserved * 1024))
        return blocks * self.warps / chip.warps


def _tool(name: str, *arguments: str) -> str:
    result = subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True)
    return result.stdout


def build(source: Source, chip: Chip) -> Machine:
    """Compile for a chip (sm90 is compiled as sm90a) and inspect the machine code.

    Raises:
        triton.CompilationError and its relatives, where the chip lacks something that the kernel uses.
    """
    signature, constants, divisors = source.split()
    attributes = {(index,): [["tt.divisibility", divisor]] for index, divisor in divisors.items()}
    kernel = triton.compile(
        ASTSource(source.function, signature, constants, attributes),
        target=chip.target,
        options={"num_warps": source.warps, "num_stages": source.stages, "enable_fp_fusion": True},  # Triton's default
    )
    products = frozenset(_products(kernel.asm["ttir"]))
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    if chip.target.backend == "hip":
        return _read_amd(kernel.asm["amdgcn"], shared, warps, products)
    return _read_nvidia(kernel.asm["cubin"], shared, warps, products)


def _products(ttir: str) -> Iterator[str]:
    """What is multiplied in Triton's intermediate language, as keys of `MATRIX`."""
    for scaled, words, element in re.findall(r"tt\.dot(_scaled)? (.*?): tensor<(?:\d+x)+(\w+)", ttir):
        if element != "f32" or "tf32" in words:  # IEEE float32 has no matrix unit
            yield "scaled" if scaled else OPERANDS[element]


def _read_nvidia(cubin: bytes, shared: int, warps: int, products: frozenset[str]) -> Machine:
    """Registers and stack from cuobjdump, instructions from nvdisasm."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump gave no resource usage: {usage.strip()[:200]}")
    opcodes = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text))
    return Machine(int(found[1]), int(found[2]), shared, warps, opcodes, sum(opcodes.values()), products)


def _read_amd(assembly: str, shared: int, warps: int, products: frozenset[str]) -> Machine:
    """Registers and scratch from the notes of the code generator, instructions from its text."""
    registers, scratch = (re.search(rf"; {name}: (\d+)", assembly) for name in ("TotalNumVgprs", "ScratchSize"))
    if registers is None or scratch is None:
        raise RuntimeError("the assembly has no resource usage")
    opcodes = Counter(
        re.sub(r"V_MFMA_\w*?_(?:\d+X\d+X\d+)_?(BF16|F16|XF32|FP8|I8)\w*", r"MFMA_\1", name.upper())
        for name in re.findall(r"^\t([a-z]+_\w+)", assembly, re.MULTILINE)
    )
    return Machine(int(registers[1]), int(scratch[1]), shared, warps, opcodes, sum(opcodes.values()), products)
