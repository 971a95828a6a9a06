"""Which XLA platforms are here: none where jax is not installed. Starts no chip unless it is asked for.

Looking for a TPU or GPU starts its runtime, which takes the chip. So only a plugin that is installed is started.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec

from hal.target import Target

HOST = frozenset({"host"})
"""No accelerator: HAL_BACKEND=auto never means this target, only its name does."""

PLATFORMS = ("tpu", "gpu")
"""Other than this machine's processor; `jax:tpu`, `jax:gpu`."""

_PLUGINS = {"tpu": ("libtpu", "libtpu-nightly"), "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")}


def described() -> list[Target]:
    """What the kernels are for, here or not. torch keeps tensors on the host on all of them."""
    return [Target("jax", "cpu", HOST), *(Target(f"jax:{name}", "cpu", present=False) for name in PLATFORMS)]


def present() -> list[Target]:
    """The platforms that jax finds here: the host always, a TPU or GPU where its plugin finds one."""
    if find_spec("jax") is None:
        return []
    return [Target("jax", "cpu", HOST), *(Target(f"jax:{name}", "cpu") for name in PLATFORMS if _found(name))]


@cache
def _found(name: str) -> bool:
    installed = {found.metadata["Name"].lower() for found in distributions() if found.metadata["Name"]}
    if not installed & set(_PLUGINS[name]):
        return False
    import jax

    try:
        return bool(jax.devices(name))
    except RuntimeError:
        return False
