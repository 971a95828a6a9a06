"""Which platforms of XLA are in this machine, by the packages that bring them; JAX itself is not imported."""

from __future__ import annotations

from importlib.util import find_spec

from hal.target import Target

PLUGINS = {"jax:tpu": ("libtpu",), "jax:gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")}
"""Platforms beside the CPU, and packages that bring one."""


def present() -> list[Target]:
    """The platforms that are here, best first. To torch all of them are the host: arrays are exchanged there."""
    if find_spec("jax") is None:
        return []
    found = [name for name, packages in PLUGINS.items() if any(find_spec(package) for package in packages)]
    return [Target(name, "cpu") for name in (*found, "jax")]
