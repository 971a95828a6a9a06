"""Compiles the device extension once per source and torch, into the cache directory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "src"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared")


def library() -> Path:
    """The compiled extension; about half a minute the first time, and nothing after that.

    Raises:
        RuntimeError: there is no C++ compiler, or it failed.
    """
    made = _folder() / f"device-{_key()}.so"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with (made.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may start at once
        if not made.exists():
            _compile(made)
    return made


def _compile(made: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the emulated device is compiled on first use, but no C++ compiler is here: install g++")
    root = Path(torch.__file__).parent
    half = made.with_suffix(".part")
    command = [
        compiler,
        *FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root / 'include'}",
        f"-I{root / 'include/torch/csrc/api/include'}",
        str(SOURCES / "device.cpp"),
        "-o",
        str(half),
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
        f"-Wl,-rpath,{root / 'lib'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line][:5]
        raise RuntimeError("compiling the emulated device failed: " + "; ".join(errors or [done.stderr[-500:]]))
    half.replace(made)


def _key() -> str:
    """Changes with the sources, with torch and where it is, and with the flags."""
    digest = hashlib.sha256(repr((torch.__version__, torch.__file__, FLAGS)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hal" / "emulators"
