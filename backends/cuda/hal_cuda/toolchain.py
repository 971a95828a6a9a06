"""Compile Triton kernels for chips that are not here and read what the compiler made of them.

Triton brings ptxas, nvdisasm and cuobjdump along, so a kernel can be compiled down to machine code without a driver. A
compile that succeeds proves little: `inspect` reads registers, spills, shared memory and which instructions are there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
"""KiB of shared memory that one block may ask for (CUDA C++ programming guide, compute capabilities)."""

SHARED_PER_SM = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 103: 228, 120: 100}
WARPS_PER_SM = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 103: 64, 120: 48}
REGISTERS_PER_SM = 65536

MATRIX = {
    "16 bit": ("HMMA", "HGMMA", "UTCHMMA"),
    "fp8": ("QMMA", "QGMMA", "UTCQMMA"),
    "int8": ("IMMA", "IGMMA", "UTCIMMA"),
    "scaled": ("OMMA", "QMMA", "UTCOMMA", "UTCQMMA"),
}
"""Instructions of the matrix units by what they multiply: of warps (sm80, 89, 120), warp groups (sm90), tensor memory
(sm100)."""

OPERANDS = {"bf16": "16 bit", "f16": "16 bit", "f32": "16 bit", "f8E4M3FN": "fp8", "i8": "int8"}
"""Element types of Triton's intermediate language. float32 is multiplied as tf32, by the unit of 16-bit products."""


@dataclass(frozen=True)
class Source:
    """One specialisation of a kernel.

    `arguments` gives each parameter its Triton type ("*bf16", "i32", ...; a trailing ":16" promises divisibility by
    16), or, in a tuple of one, its compile-time value.
    """

    function: Any
    arguments: dict[str, str | tuple[Any]]
    warps: int
    stages: int


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

    def occupancy(self, arch: int) -> float:
        """Resident warps over the chip's limit, from registers and shared memory."""
        per_block = -(-self.registers // 8) * 8 * 32 * self.warps
        blocks = min(REGISTERS_PER_SM // max(1, per_block), WARPS_PER_SM[arch] // self.warps, 32)
        if self.shared:
            blocks = min(blocks, SHARED_PER_SM[arch] * 1024 // (self.shared + 1024))
        return blocks * self.warps / WARPS_PER_SM[arch]


@cache
def _ptxas(arch: int) -> str:
    from triton.backends.nvidia.compiler import get_ptxas

    return str(get_ptxas(arch).path)


def _tool(name: str, *arguments: str) -> str:
    result = subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True)
    return result.stdout


def build(source: Source, arch: int) -> Machine:
    """Compile for compute capability `arch` (90 for sm90a) and inspect the machine code.

    Raises:
        triton.CompilationError and its relatives, where the chip lacks something that the kernel uses.
    """
    names = source.function.arg_names
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, name in enumerate(names):
        value = source.arguments[name]
        if isinstance(value, tuple):
            signature[name], constants[name] = "constexpr", value[0]
            continue
        kind, _, divisor = value.partition(":")
        signature[name] = kind
        if divisor:
            attributes[(index,)] = [["tt.divisibility", int(divisor)]]
    kernel = triton.compile(
        ASTSource(source.function, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": source.warps, "num_stages": source.stages},
    )
    products = frozenset(_products(kernel.asm["ttir"]))
    return inspect(kernel.asm["cubin"], kernel.metadata.shared, kernel.metadata.num_warps, products)


def _products(ttir: str) -> Iterator[str]:
    """What is multiplied in Triton's intermediate language, as keys of `MATRIX`."""
    for scaled, words, element in re.findall(r"tt\.dot(_scaled)? (.*?): tensor<(?:\d+x)+(\w+)", ttir):
        if element != "f32" or "tf32" in words:  # IEEE float32 has no matrix unit
            yield "scaled" if scaled else OPERANDS[element]


def inspect(cubin: bytes, shared: int, warps: int, products: frozenset[str] = frozenset()) -> Machine:
    """Read a compiled kernel: registers and stack from cuobjdump, instructions from nvdisasm."""
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
