"""NVIDIA GPUs in this machine, found without torch, and what their chips can do."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable

from hal.target import Target, described

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, CUDA driver API."""

ALIKE = {"sm86": "sm80", "sm87": "sm80", "sm103": "sm100", "sm121": "sm120"}
"""Chips without a profile of their own that have the features of another one."""


def present(capabilities: Callable[[], list[tuple[int, int]]] | None = None) -> list[Target]:
    """The GPUs of this machine, one target per kind of chip, first device first."""
    found: dict[str, Target] = {}
    for major, minor in (capabilities or _capabilities)():
        chip = f"sm{major}{minor}"
        found.setdefault(chip, _target(chip))
    return list(found.values())


def _target(chip: str) -> Target:
    """A chip that is here, with the features that its profile knows; none where there is no profile."""
    profiles = {target.name: target for target in described()}
    known = profiles.get(f"cuda:{chip}") or profiles.get(f"cuda:{ALIKE.get(chip, '')}")
    if known is None:
        return Target(f"cuda:{chip}", "cuda")
    return Target(f"cuda:{chip}", "cuda", known.features, known.facts, streams=known.streams)


def _capabilities() -> list[tuple[int, int]]:
    """Compute capability of each device, from the driver; nothing where there is no driver."""
    name = ctypes.util.find_library("cuda")
    if name is None:
        return []
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [(_attribute(driver, MAJOR, index), _attribute(driver, MINOR, index)) for index in range(count.value)]


def _attribute(driver: ctypes.CDLL, which: int, device: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
