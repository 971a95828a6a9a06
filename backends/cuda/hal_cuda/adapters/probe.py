"""The production libraries as they are installed. The only module that knows that their versions differ.

A library is looked for without importing it. It is imported when a chip that is here is planned for, or a kernel is
bound; what it takes is then read from its signatures, once.

| library | differs | told by |
|---|---|---|
| FlashMLA, until 2026.09 | reads the 584-byte rows of DeepSeek-V4 | neither `enable_batch_invariant` nor `use_legacy` |
| FlashMLA in vLLM | the same rows, can write into an output | `out` |
| sgl-flash-mla | the same rows, with its older kernels only | `use_legacy`, `kv_format` |
| FlashMLA, since 2026.09.30 | rows of DeepSeek-V4.1 only: not used | `enable_batch_invariant`, nothing of the above |
| DeepGEMM 2.6 | logits have a dtype and can be left unclean | `logits_dtype`, `clean_logits` |
| DeepGEMM 2.8 | logits are float32 where weights are | neither |
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hal.constraints import Constraint, Facts, Reason
from hal.target import Target

__all__ = ["LIBRARIES", "Library", "forget", "function", "load", "offered", "parameters"]


@dataclass(frozen=True)
class Library:
    """Where a library may be (the first module that exists is taken) and where it comes from."""

    name: str
    modules: tuple[str, ...]
    source: str


LIBRARIES = {
    library.name: library
    for library in (
        Library(
            "flash_mla",
            ("flash_mla", "vllm.third_party.flashmla.flash_mla_interface"),
            "pip install sgl-flash-mla, or build github.com/deepseek-ai/FlashMLA",
        ),
        Library(
            "deep_gemm",
            ("deep_gemm", "vllm.third_party.deep_gemm"),
            "pip install sgl-deep-gemm, or build github.com/deepseek-ai/DeepGEMM",
        ),
        Library("deep_ep", ("deep_ep",), "pip install sgl-deep-ep, or build github.com/deepseek-ai/DeepEP"),
        Library("flashinfer", ("flashinfer.mla",), "pip install flashinfer-python"),
    )
}


@cache
def found(name: str) -> str | None:
    """The module of a library, found without importing anything; None where it is not installed."""
    return next((module for module in LIBRARIES[name].modules if _exists(module)), None)


def _exists(module: str) -> bool:
    """Whether `a.b.c` is there: `a` is looked up, the rest by its files, because find_spec would import `a`."""
    package, *inner = module.split(".")
    try:
        spec = find_spec(package)
    except ValueError:  # a module in sys.modules without a spec
        return False
    if spec is None or not inner:
        return spec is not None
    folders = [Path(place).joinpath(*inner) for place in spec.submodule_search_locations or ()]
    return any(folder.is_dir() or folder.with_suffix(".py").is_file() for folder in folders)


@cache
def load(name: str) -> ModuleType:
    """The library, imported.

    Raises:
        ImportError: it is not installed, or does not import.
    """
    module = found(name)
    if module is None:
        raise ImportError(f"{name} is not installed")
    return import_module(module)


@cache
def function(library: str, *names: str) -> Callable[..., Any]:
    """The first of several names of one function that a library has.

    Raises:
        AttributeError: it has none of them.
    """
    module = load(library)
    name = next((name for name in names if hasattr(module, name)), names[0])
    made: Callable[..., Any] = getattr(module, name)
    return made


@cache
def parameters(library: str, *names: str) -> frozenset[str]:
    """Parameters of a library's function. Compiled ones (pybind11) say them in the first line of their docstring."""
    called = function(library, *names)
    try:
        return frozenset(inspect.signature(called).parameters)
    except (TypeError, ValueError):
        return frozenset(re.findall(r"(\w+): ", (called.__doc__ or "").partition("\n")[0]))


def forget() -> None:
    """Look at everything again, as after an installation."""
    for memo in (found, load, function, parameters):
        memo.cache_clear()


@dataclass(frozen=True)
class Offered(Constraint):
    """A library is installed and has what an adapter calls."""

    target: Target | None = None
    library: str = ""
    functions: tuple[tuple[str, ...], ...] = ()
    form: Callable[[], str] | None = None

    def reason(self, facts: Facts) -> Reason | None:
        """Why the adapter cannot be used, or None; on a chip that is only described, being installed is enough."""
        if self.target is None or found(self.library) is None:
            return Reason(self.library, self.wanted, "not installed", LIBRARIES[self.library].source)
        if self.target.emulated:
            return Reason(self.library, "a GPU", "on an emulated chip")
        lacking = self._lacking() if self.target.present else ""
        return Reason(self.library, self.wanted, lacking, LIBRARIES[self.library].source) if lacking else None

    def _lacking(self) -> str:
        try:
            module = load(self.library)
        except Exception as error:  # whatever a broken installation raises
            return f"installed but does not import: {(str(error) or type(error).__name__).splitlines()[0]}"
        for names in self.functions:
            if not any(hasattr(module, name) for name in names):
                return f"installed without {names[0]}"
        return self.form() if self.form else ""


def offered(target: Target, library: str, *functions: str, form: Callable[[], str] | None = None) -> Offered:
    """A library with some functions; `a|b` for one of two names. `form` says what is wrong with its version, if it is.

    The library is looked at when a plan asks, not here.
    """
    names = tuple(tuple(name.split("|")) for name in functions)
    wanted = ", ".join(each[0] for each in names)
    return Offered("library", library, wanted, lambda facts: True, (), (), None, target, library, names, form)
