"""Compile Triton kernels for Ascend chips that are not here, as far as it goes without CANN, and read what came out.

Two wheels are needed, in an environment of their own because they overwrite stock Triton: triton-ascend, which lowers
Triton's language to linalg, and ascendnpu-ir (AscendNPU-IR), which plans memory, splits work between cube and vector
cores, inserts synchronisation, and refuses what does not fit the unified buffer. The last step, from its optimised IR
to a binary, is CANN's `hivmc`; a stand-in keeps the IR that it would get.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from hal_triton.compiling import Source

from hal.errors import NotInstalled

SOC = {"a2": "Ascend910B3", "a3": "Ascend910_9391", "a5": "Ascend950PR_9579"}
"""A chip of each generation, as the compiler names it."""

BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32, "f8E4M3FN": 8}
CONSTANT = re.compile(r"(%[\w-]+) = (?:arith\.constant |llvm\.mlir\.constant\()(-?\d+) : i64")
PLACED = re.compile(r"hivm\.hir\.pointer_cast\(([^)]*)\) : memref<((?:\d+x)*)(\w+)[^>]*?#hivm\.address_space<(\w+)>")
PATIENCE = 60
KEEP = '#!/bin/sh\nfor word in "$@"; do case "$word" in *.mlir) cp "$word" "$HIVM_IR" ;; esac; done\n'
"""Stands where CANN's last compiler is."""

SPACES = {"UB KiB": ("ub", "UB_SIZE"), "L1 KiB": ("cbuf", "L1_SIZE"), "L0C KiB": ("cc", "L0C_SIZE")}
"""On-chip memories: unified buffer of a vector core; operands and sums of a cube core."""


@dataclass(frozen=True)
class Machine:
    """What the compiler planned for a kernel on one chip.

    Attributes:
        cores: "vector", or "cube + vector" where a product is split off.
        used, limit: bytes of each memory, by the names of `SPACES`.
        products: products of the cube, as the compiler calls them.
        asked: whether the kernel multiplies at all.
        retries: what the compiler gave up to make it fit.
    """

    cores: str
    used: dict[str, int]
    limit: dict[str, int]
    products: tuple[str, ...]
    asked: bool
    retries: tuple[str, ...]


@cache
def compiler(chip: str) -> Path:
    """AscendNPU-IR's compiler for a generation.

    Raises:
        NotInstalled: it is not, or the Triton of this environment is not Ascend's.
    """
    found = find_spec("ascendnpuir")
    if found is None or found.origin is None or find_spec("triton.backends.ascend") is None:
        raise NotInstalled(
            "triton-ascend or ascendnpu-ir is not installed",
            where="hal compile ascend",
            fix="run `make compile-ascend`: both need an environment without stock Triton",
        )
    return Path(found.origin).parent / "bin" / ("bishengir-compile-a5" if chip == "a5" else "bishengir-compile")


def build(source: Source, chip: str) -> Machine:
    """Lower for a chip ("a2", "a3", "a5") and read the plan.

    Raises:
        RuntimeError: a step refuses; its text is the compiler's reason.
    """
    executable = compiler(chip)
    linalg, asked = lowered(source, chip)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tool in ("hivmc", "hivmc-a5"):
            (folder / tool).write_text(KEEP)
            (folder / tool).chmod(0o755)
        (folder / "kernel.mlir").write_text(linalg)
        result = _run(
            [executable, folder / "kernel.mlir", f"--target={SOC[chip]}", *_options(chip), "-o", folder / "kernel"],
            {**os.environ, "PATH": f"{name}:{os.environ['PATH']}", "HIVM_IR": str(folder / "hivm.mlir")},
        )
        if not (folder / "hivm.mlir").exists():
            raise RuntimeError(_reason(result.stdout + result.stderr, result.returncode))
        return read((folder / "hivm.mlir").read_text(), asked, result.stdout + result.stderr)


def _run(command: list[Any], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the compiler was not done after {PATIENCE} seconds") from error


def lowered(source: Source, chip: str) -> tuple[str, bool]:
    """The kernel in linalg, and whether it multiplies matrices.

    Raises:
        RuntimeError: triton-ascend refuses.
    """
    from triton._C.libtriton import ir
    from triton.backends.ascend.compiler import _parse_linalg_metadata, make_ttir, ttir_to_linalg
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    signature, constants, _ = source.split()
    target = GPUTarget("npu", SOC[chip], 0)
    backend = make_backend(target)
    options = backend.parse_options({"compile_on_910_95": chip == "a5", "debug": False})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    asked = ASTSource(source.function, signature=signature, constants=constants)
    module = asked.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata: dict[str, Any] = {**options.__dict__, "target": target, "hash": asked.hash()}
    module = make_ttir(module, metadata, options)
    multiplies = "tt.dot" in str(module)
    try:
        linalg = ttir_to_linalg(module, metadata, options, named_ops=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(_reason(error.stderr.decode(errors="replace"), error.returncode)) from error
    return _parse_linalg_metadata(linalg, metadata)[0], multiplies


def _options(chip: str) -> Iterator[str]:
    """What triton-ascend itself passes."""
    yield from ("--enable-hfusion-compile=true", "--enable-triton-kernel-compile=true")
    if chip != "a5":
        yield from ("--enable-hivm-compile=true", "--enable-auto-multi-buffer=True")
        yield "--enable-auto-bind-sub-block=True"


def _reason(text: str, code: int) -> str:
    """The compiler's own words, the most telling line last."""
    lines = [line for line in text.splitlines() if "error:" in line or "Assertion" in line or "LLVM ERROR" in line]
    telling = [line for line in lines if "overflow" in line or "Assertion" in line] or lines
    return re.sub(r"loc\([^)]*\):? ?|/\S+/", "", telling[-1])[:300] if telling else f"the compiler ended with {code}"


def read(hivm: str, asked: bool, said: str = "") -> Machine:
    """The plan in an optimised HIVM module."""
    limits = {name: int(bits) // 8 for name, bits in re.findall(r'"(\w+_SIZE)", (\d+) : i32', hivm)}
    constants: dict[str, int] = {}
    used = dict.fromkeys(SPACES, 0)
    spaces = {space: name for name, (space, _) in SPACES.items()}
    for line in hivm.splitlines():  # numbered values begin anew in every function
        if found := CONSTANT.search(line):
            constants[found[1]] = int(found[2])
        elif (found := PLACED.search(line)) and found[4] in spaces:
            size = prod(int(word) for word in found[2].split("x") if word) * BITS[found[3]] // 8
            ends = [constants[place.strip()] + size for place in found[1].split(",")]
            used[spaces[found[4]]] = max(used[spaces[found[4]]], *ends)
    products = tuple(sorted(set(re.findall(r"call @(?:mma_tile|mmad\w*?)_(\w+?)(?:_t[ab]\w*)?\(", hivm))))
    return Machine(
        "cube + vector" if products else "vector",
        used,
        {name: limits[size] for name, (_, size) in SPACES.items()},
        products,
        asked,
        tuple(dict.fromkeys(re.findall(r"automatically set (enable-[\w-]+) to false", said))),
    )
