"""Libraries that tests install: stand-ins with published signatures, and the published wheels' own Python."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from hal_cuda.adapters import probe

from hal.conformance.samples.sample import Sample
from hal.numerics.contracts import expect
from hal.numerics.precision import Precision

FORMS = Path(__file__).parent.parent / "forms"
WHEELS = Path(os.environ.get("CUDA_LIBRARY_WHEELS", Path(__file__).parents[4] / ".wheels-cuda"))
"""A folder of wheels, as `pip download --no-deps` leaves them: where `make .wheels-cuda` puts them, or another."""

PACKAGES = ("flash_mla", "deep_gemm", "deep_ep", "flashinfer", "vllm")


@contextmanager
def installed(folder: Path | None) -> Iterator[None]:
    """The packages of a folder, and no other library, as if they were installed."""
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in PACKAGES}
    path = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    probe.forget()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
            del sys.modules[name]
        sys.modules.update(held)
        probe.forget()


def python_of(wheel: str, folder: Path, shared: tuple[str, ...] = (), whole: bool = False) -> Path | None:
    """The Python of a wheel, unpacked, or the `whole` wheel. None where there is no such wheel.

    `shared` are compiled files, which stay empty.
    """
    found = sorted(WHEELS.glob(f"{wheel}-*.whl"))
    if not found:
        return None
    with zipfile.ZipFile(found[-1]) as files:
        names = [name for name in files.namelist() if whole or name.endswith((".py", "VERSION", "_version.txt"))]
        files.extractall(folder, names)
    for name in shared:
        (folder / name).touch()
    return folder


class Absent(ModuleType):
    """A package that a library imports and does not need for what is run here."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else MagicMock(name=name)


class Absentees(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty package wherever one of `names` or a part of it is imported."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = name.split(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def judged(function: Any, sample: Sample, precision: Precision | None = None) -> Any:
    """Run a kernel's function on a sample and judge what it returns against the reference.

    `precision` is the library's where it is another one than the contract promises.
    """
    arguments = sample.arguments()
    expectation = expect(sample.contract, arguments, sample.attributes, precision, sample.layouts)
    outputs = function(*arguments, **sample.attributes)
    verdict = expectation.judge(outputs, arguments)
    assert verdict.passed, str(verdict)
    return outputs
