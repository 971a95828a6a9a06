"""A backend for planted faults: all kernels of hal-cpu, some replaced, installed as a distribution on a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

ACME = """
from dataclasses import replace

from hal.kernel import Kernel
from hal.plugins import hookimpl
from hal.target import Backend, Target
from hal_cpu import plugin


@hookimpl
def hal_backend():
    return Backend("acme", "hal-acme", "cpu", api="1.0")


@hookimpl
def hal_targets():
    return [Target("acme:one", "cpu")]


@hookimpl
def hal_layouts(target):
    return plugin.hal_layouts(target)


@hookimpl
def hal_kernels(target):
    return [ours(kernel) for kernel in plugin.hal_kernels(target)]


def ours(kernel):
    name = kernel.id.partition(".")[2]
    code = f"hal_acme_faults:{name}" if name in FAULTS else kernel.code
    return replace(kernel, id=f"acme.{name}", code=code)


FAULTS = %r
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Installs and selects the backend acme: its `faults` are the functions of these names in `source`."""

    def install(source: str, *faults: str) -> Path:
        (tmp_path / "hal_acme.py").write_text(ACME % (faults,))
        (tmp_path / "hal_acme_faults.py").write_text(source)
        info = tmp_path / "hal_acme-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hal-acme\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[hal.backends]\nacme = hal_acme\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("HAL_BACKEND", "acme")
        return tmp_path

    return install
