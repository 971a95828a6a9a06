"""Compiles the CANN stand-ins once per source, compiler flags and set of operators, into the cache directory.

Imports no torch: the libraries must be loaded before torch_npu is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden")
LIBRARIES = {
    "libascendcl.so": ("runtime.cpp", "formats.cpp"),
    "libacl_op_compiler.so": (),
    "libge_runner.so": (),
    "libgraph.so": (),
    "libacl_tdt_channel.so": (),
    "libruntime.so": (),
    "libhccl.so": ("hccl.cpp",),
    "libopapi.so": ("opapi.cpp",),
}
"""What torch_npu links or opens by name, and our sources of it; those without are other names of the first."""

TRAMPOLINE = """.text
hal_cann_prepare_entry:
  pushq %rbp
  movq %rsp, %rbp
  subq $128, %rsp
  movq %rdi, 0(%rsp)
  movq %rsi, 8(%rsp)
  movq %rdx, 16(%rsp)
  movq %rcx, 24(%rsp)
  movq %r8, 32(%rsp)
  movq %r9, 40(%rsp)
  movsd %xmm0, 64(%rsp)
  movsd %xmm1, 72(%rsp)
  movsd %xmm2, 80(%rsp)
  movsd %xmm3, 88(%rsp)
  movsd %xmm4, 96(%rsp)
  movsd %xmm5, 104(%rsp)
  movsd %xmm6, 112(%rsp)
  movsd %xmm7, 120(%rsp)
  movl %eax, %edi
  leaq 0(%rsp), %rsi
  leaq 64(%rsp), %rdx
  leaq 16(%rbp), %rcx
  call hal_cann_prepare
  leave
  ret
hal_cann_execute_entry:
  movl %eax, %edi
  movq %rdx, %rsi
  jmp hal_cann_execute
"""
"""x86-64 System V: integer registers, vector registers and the stack, as `opapi.cpp` takes them."""


def libraries(without: frozenset[str] = frozenset()) -> dict[str, Path]:
    """The compiled stand-ins by name, in the order they are to be loaded; some seconds the first time.

    Args:
        without: aclnn operators that this CANN does not export, as an older one would not.

    Raises:
        RuntimeError: torch_npu is not installed; there is no C++ compiler, or it failed; not an x86-64 host.
    """
    names = [name for name in operators() if name not in without]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hal" / "emulators"
    folder = base / f"cann-{_key(names)}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may start at once
        if not folder.exists():
            half = folder.with_suffix(".part")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            _compile(half, names)
            half.rename(folder)
    return {name: folder / name for name in LIBRARIES}


def operators() -> list[str]:
    """Every aclnn operator that the installed torch_npu names in its own libraries.

    Raises:
        RuntimeError: torch_npu is not installed.
    """
    spec = find_spec("torch_npu")  # finds, does not import
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("torch_npu is not installed: pip install --no-deps torch_npu==2.13.0")
    library = Path(spec.submodule_search_locations[0]) / "lib" / "libtorch_npu.so"
    words = set(re.findall(rb"\0(aclnn[A-Z][A-Za-z0-9_]*)(?=\0)", library.read_bytes()))
    return sorted(word.decode() for word in words if word + b"GetWorkspaceSize" in words)


def _compile(folder: Path, names: list[str]) -> None:
    if os.uname().machine != "x86_64":
        raise RuntimeError(f"the emulated CANN's entries are written for x86-64, not {os.uname().machine}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the emulated CANN is compiled on first use, but no C++ compiler is here: install g++")
    empty, entries = folder / "empty.cpp", folder / "entries.S"
    empty.write_text("")
    entries.write_text(_entries(names))
    for library, sources in LIBRARIES.items():
        files = [str(SOURCES / source) for source in sources] or [str(empty)]
        if library == "libopapi.so":
            files.append(str(entries))
        alias = [] if sources else [f"-L{folder}", "-Wl,--no-as-needed", "-lascendcl", "-Wl,-rpath,$ORIGIN"]
        command = [compiler, *FLAGS, f"-Wl,-soname,{library}", "-o", str(folder / library), *files, *alias, "-lrt"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line][:5]
            raise RuntimeError(f"compiling {library} failed: " + "; ".join(errors or [done.stderr[-500:]]))


def _entries(names: list[str]) -> str:
    """Assembly of two entries per operator, and the table of names."""
    lines = [TRAMPOLINE]
    for index, name in enumerate(names):
        for symbol, kind in ((f"{name}GetWorkspaceSize", "prepare"), (name, "execute")):
            lines.append(f".globl {symbol}\n.type {symbol}, @function\n{symbol}:")
            lines.append(f"  movl ${index}, %eax\n  jmp hal_cann_{kind}_entry")
    lines.append(".section .rodata")
    lines += [f'.Lname{index}: .asciz "{name}"' for index, name in enumerate(names)]
    lines.append(
        '.section .data.rel.ro, "aw"\n.balign 8\n.globl hal_cann_names\n.hidden hal_cann_names\nhal_cann_names:'
    )
    lines += [f"  .quad .Lname{index}" for index in range(len(names))]
    lines.append(".globl hal_cann_count\n.hidden hal_cann_count\nhal_cann_count:")
    return "\n".join([*lines, f"  .long {len(names)}", '.section .note.GNU-stack, "", @progbits', ""])


def _key(names: list[str]) -> str:
    digest = hashlib.sha256(repr((FLAGS, LIBRARIES, TRAMPOLINE, names)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
