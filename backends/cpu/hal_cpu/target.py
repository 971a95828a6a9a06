"""Facts about the CPU this process runs on."""

from __future__ import annotations

from pathlib import Path

from hal.target import Target

FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
"""Names of the kernel's `flags` line that matter to matrix code."""


def target() -> Target:
    """This machine's CPU; where the system does not say what it has, no feature is claimed."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return Target("cpu", "cpu", frozenset(name for name in FLAGS if name in flags))
