"""Facts about this machine's processor, read without torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from hal.target import Target

FEATURES = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimd": "neon",
    "sve": "sve",
    "bf16": "neon_bf16",
}
"""Flags of Linux' /proc/cpuinfo and what they are called among a target's features."""


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Target:
    """The processor this process runs on. What the system does not tell stays unsaid."""
    flags, model = _read(cpuinfo)
    facts = {"machine": platform.machine(), "model": model, "cores": _cores()}
    features = frozenset(name for flag, name in FEATURES.items() if flag in flags)
    return Target("cpu", "cpu", features, {name: value for name, value in facts.items() if value})


def _read(cpuinfo: Path) -> tuple[frozenset[str], str]:
    """Flags and model name of the first processor."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset(), platform.processor()
    lines = text.partition("\n\n")[0].splitlines()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return frozenset((said.get("flags") or said.get("Features") or "").split()), said.get("model name", "")


def _cores() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
