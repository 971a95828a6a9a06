"""The Triton kernels of this backend, computed on the host from what triton-ascend makes of them for a chip.

The linalg that AscendNPU-IR gets is lowered by LLVM's own tools instead and run, program after program, on the
conformance suite's samples; results are judged by the contracts. It shows that triton-ascend's lowering means what the
kernel means. It shows nothing of AscendNPU-IR's later passes.

    python -m hal_ascend.executed ascend:a2

needs triton-ascend (`make compile-ascend`), gcc, and MLIR 19 (Debian: mlir-19-tools, llvm-19), the version of linalg
that triton-ascend writes.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import torch
from hal_triton.compiling import Source, specialised
from hal_triton.launch import Launch, instead
from hal_triton.tuning import stand_in

from hal.conformance.cases import eligible
from hal.conformance.samples import samples
from hal.errors import NotInstalled
from hal.kernel import Kernel
from hal.numerics.contracts import expect
from hal.target import Target, described
from hal_ascend.toolchain import lowered
from hal_ascend.triton import triton_kernels

LLVM = Path("/usr/lib/llvm-19/bin")
PROGRAMS = 4
"""Programs of a launch: kernels work with any number, and loop."""

PASSES = (
    "inline",
    "symbol-dce",
    "convert-elementwise-to-linalg",
    "empty-tensor-to-alloc-tensor",
    "one-shot-bufferize=allow-return-allocs-from-loops=true",
    "convert-linalg-to-loops",
    "expand-realloc",
    "memref-expand",
    "expand-strided-metadata",
    "lower-affine",
    "convert-scf-to-cf",
    "convert-math-to-llvm",
    "convert-math-to-libm",
    "arith-expand",
    "convert-vector-to-llvm",
    "convert-index-to-llvm",
    "convert-arith-to-llvm",
    "finalize-memref-to-llvm",
    "convert-cf-to-llvm",
    "convert-func-to-llvm",
    "lower-affine",
    "convert-arith-to-llvm",
    "reconcile-unrealized-casts",
)

RUNNING_SUM = """func.func private {name}(%x: {type}, %axis: i32, %reverse: i1) -> {type} {{
    %first = arith.constant 0 : index
    %last = arith.constant {length} : index
    %step = arith.constant 1 : index
    %zero = arith.constant {zero} : {element}
    %out, %total = scf.for %i = %first to %last step %step iter_args(%done = %x, %sum = %zero) -> ({type}, {element}) {{
      %value = tensor.extract %x[%i] : {type}
      %next = arith.{add} %sum, %value : {element}
      %more = tensor.insert %next into %done[%i] : {type}
      scf.yield %more, %next : {type}, {element}
    }}
    return %out : {type}
  }}"""
"""The body of a function that triton-ascend only declares, for one dimension, forwards."""


class Host:
    """Runs launches on the host, compiled for `chip`, each specialisation once."""

    def __init__(self, chip: str) -> None:
        self.chip, self.made = chip, {}

    def __call__(self, launch: Launch, work: int) -> None:
        key, source, _ = specialised(launch)
        if key not in self.made:
            self.made[key] = compile_linalg(lowered(source, self.chip)[0])
        words = list(_words(launch, source))
        programs = min(work, PROGRAMS)
        for program in range(programs):
            place = [ctypes.c_int32(number) for number in (programs, 1, 1, program, 0, 0)]
            self.made[key](*_memref(0, 0), *_memref(0, 0), *words, *place)


def compile_linalg(linalg: str) -> Any:
    """The kernel of a linalg module as a function of this process.

    Raises:
        NotInstalled: MLIR 19 or gcc is not here.
        RuntimeError: a tool refuses.
    """
    if not (LLVM / "mlir-opt").exists() or which("gcc") is None:
        raise NotInstalled(
            "mlir-opt 19 or gcc is not here", where=str(LLVM), fix="apt install mlir-19-tools llvm-19 gcc"
        )
    name = re.findall(r"func\.func @(\w+)", linalg)[0]
    linalg = re.sub(r"\{hivm\.unlikely_condition\}|input_precison = \"\w+\"", "", linalg)
    linalg = linalg.replace("linalg.matmul {}", "linalg.matmul")
    running = r"func\.func private (@triton_cumsum_\d+)\((tensor<(\d+)x(\w+)>), i32, i1\) -> tensor<\w+>"
    linalg = re.sub(running, _running_sum, linalg)
    folder = Path(tempfile.mkdtemp(prefix="hal-linalg-"))
    (folder / "a.mlir").write_text(linalg)
    passes = [f"--{each}" for each in PASSES]
    _tool(LLVM / "mlir-opt", folder / "a.mlir", "--allow-unregistered-dialect", *passes, "-o", folder / "b.mlir")
    _tool(LLVM / "mlir-translate", "--mlir-to-llvmir", folder / "b.mlir", "-o", folder / "c.ll")
    _tool(LLVM / "llc", "-O3", "-filetype=obj", "-relocation-model=pic", folder / "c.ll", "-o", folder / "c.o")
    calls = Path(__file__).with_suffix(".c")
    _tool("gcc", "-O2", "-shared", "-fPIC", "-o", folder / "kernel.so", folder / "c.o", calls, "-lm")
    function = ctypes.CDLL(str(folder / "kernel.so"))[name]
    function.restype = None
    return function


def _running_sum(declared: re.Match[str]) -> str:
    name, type_, length, element = declared.groups()
    float_ = element[0] in "fb"
    words = {"add": "addf", "zero": "0.0"} if float_ else {"add": "addi", "zero": "0"}
    return RUNNING_SUM.format(name=name, type=type_, length=length, element=element, **words)


def _tool(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[:300] or done.returncode}")


def _words(launch: Launch, source: Source) -> Iterator[Any]:
    """Run-time arguments as C takes them: five words for a memref, else one."""
    given = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    for name, kind in source.arguments.items():
        value = given[name]
        if isinstance(kind, tuple):
            continue
        if isinstance(value, torch.Tensor):
            yield from _memref(value.data_ptr(), value.untyped_storage().nbytes() // value.element_size())
        elif kind.startswith("fp"):
            yield ctypes.c_float(value)
        else:
            yield (ctypes.c_int64 if kind.startswith("i64") else ctypes.c_int32)(value)


def _memref(pointer: int, length: int) -> Iterator[Any]:
    yield from (ctypes.c_void_p(pointer), ctypes.c_void_p(pointer))
    yield from (ctypes.c_int64(0), ctypes.c_int64(length), ctypes.c_int64(1))


def judged(kernel: Kernel, target: Target, host: Host) -> tuple[Counter[str], list[str]]:
    """Samples of a kernel that are right, wrong or refused, and why."""
    counts: Counter[str] = Counter()
    reasons = []
    for sample in samples(kernel.contract):
        if not eligible(kernel, sample.call, target):
            continue
        arguments = sample.arguments()
        wanted = expect(kernel.contract, arguments, sample.attributes)
        try:
            with instead(host), stand_in("a5" if host.chip == "a5" else "a2"), torch.no_grad():
                outputs = kernel.load()(*arguments, **sample.attributes)
        except RuntimeError as error:
            counts["refused"] += 1
            reasons.append(f"{sample.title}: {error}")
            continue
        verdict = wanted.judge(outputs, arguments)
        counts["right" if verdict else "wrong"] += 1
        if not verdict:
            reasons.append(f"{sample.title}: {verdict.text}")
    return counts, reasons


def main() -> int:
    """One line per kernel; exit code 1 if one is wrong or refused."""
    names = sys.argv[1:] or ["ascend:a2", "ascend:a5"]
    bad = 0
    for target in (target for target in described() if target.name in names):
        host = Host(target.name.partition(":")[2])
        for kernel in triton_kernels(target):
            counts, reasons = judged(kernel, target, host)
            words = ", ".join(f"{count} {word}" for word, count in counts.items())
            print(f"{target.name} {kernel.id}: {words}", *reasons[:3], sep="\n    ", flush=True)
            bad += counts["wrong"] + counts["refused"]
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
