"""Loads backends: only the one that was asked for is imported; one that is broken says so without harming others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from hal import hookspecs
from hal.environment import nearest
from hal.errors import ApiMismatch, Broken, Conflict, HalError, NotInstalled
from hal.hookspecs import hookimpl
from hal.kernel import Compiled, Kernel
from hal.target import Backend, Target

__all__ = ["GROUP", "Loaded", "hookimpl", "installed", "load"]

GROUP = "hal.backends"
PACKS = "hal.kernels"
"""Entry-point group of kernel packs: the name is that of the backend whose targets get the module's `hal_kernels`."""

EXTRA: dict[str, EntryPoint] = {}
"""Backends that no distribution registers, by name: the conformance suite's own."""


@dataclass(frozen=True)
class Loaded:
    """A backend whose module is imported and whose hooks are checked, and the kernel packs that add to its targets."""

    backend: Backend
    hooks: Any
    packs: tuple[tuple[str, Any], ...] = ()

    def targets(self) -> list[Target]:
        """The chips that are here."""
        return list(self._call("hal_targets"))

    def kernels(self, target: Target) -> list[Kernel]:
        """Kernels for a target, best first.

        Raises:
            Conflict: two have the same id.
        """
        kernels: list[Kernel] = list(self._call("hal_kernels", target=target))
        for where, hooks in self.packs:
            kernels += _answer(hooks.hal_kernels, where, target=target)
        seen: set[str] = set()
        for kernel in kernels:
            if kernel.id in seen:
                raise Conflict(
                    f"two kernels are called {kernel.id!r}", where=self.backend.distribution, fix="rename one"
                )
            seen.add(kernel.id)
        return kernels

    def layouts(self, target: Target) -> list[str]:
        """Cache layouts and weight schemes, best first."""
        return list(self._call("hal_layouts", target=target))

    def compiled(self, target: Target, pattern: str = "*") -> Iterator[Compiled]:
        """What a compiler makes of a target's kernels that fit a pattern; nothing where the backend has no compiler."""
        for one in self._call("hal_compile", target=target, pattern=pattern):
            if any(fnmatchcase(word, pattern) for word in (one.kernel, *one.serves)):
                yield one

    def watch_host(self, target: Target) -> AbstractContextManager[list[str]]:
        """Gives a list that grows by the name of every operator that runs on the host; empty where nobody watches."""
        found: AbstractContextManager[list[str]] | list[object] = self._call("hal_watch_host", target=target)
        return found if isinstance(found, AbstractContextManager) else nullcontext([])

    def _call(self, hook: str, **arguments: Any) -> Any:
        return _answer(getattr(self.hooks, hook), self.backend.distribution, **arguments)


def _answer(hook: Any, where: str, **arguments: Any) -> Any:
    """What a hook gives; an empty list where a module does not have it."""
    try:
        found = hook(**arguments)
    except HalError:
        raise
    except Exception as error:
        raise Broken(f"{hook.name} raised {type(error).__name__}: {error}", where=where) from error
    return found[0] if found else []


def installed() -> dict[str, EntryPoint]:
    """Entry points of all installed backends, by name; nothing is imported.

    Raises:
        Conflict: two distributions register the same name.
    """
    found = dict(EXTRA)
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise Conflict(
                f"{other.value} and {entry.value} both register the backend {entry.name!r}",
                where=GROUP,
                fix="uninstall one of the two distributions",
            )
    return found


@cache
def load(name: str) -> Loaded:
    """Import and check one backend.

    Raises:
        NotInstalled: no distribution registers it.
        Broken: its module raises, or has a hook that does not exist.
        ApiMismatch: it was written for another major version of the hooks.
    """
    entries = installed()
    if name not in entries:
        fix = nearest(name, entries) if entries else f"run `pip install hal-{name}`"
        raise NotInstalled(f"no installed package provides the backend {name!r}", where="HAL_BACKEND", fix=fix)
    hooks, where = _hooks(entries[name])
    declared = _answer(hooks.hal_backend, where)
    if not declared:
        raise Broken("it has no hal_backend hook", where=where, fix="return a hal Backend from hal_backend()")
    backend: Backend = declared
    major = int(backend.api.split(".")[0])
    if major != hookspecs.API[0]:
        here = ".".join(map(str, hookspecs.API))
        raise ApiMismatch(
            f"it was written for hooks {backend.api}, this hal has {here}",
            where=where,
            fix=f"install a hal-{name} for {here}",
        )
    packs = (_hooks(entry) for entry in entry_points(group=PACKS) if entry.name == name)
    return Loaded(backend, hooks, tuple((where, hooks) for hooks, where in packs))


def _hooks(entry: EntryPoint) -> tuple[Any, str]:
    """Import a module and check its hooks; they, and the words for where they come from."""
    where = f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(entry.load(), name=entry.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        hook = str(error).partition("unknown hook ")[2].split("'")[1] if "unknown hook" in str(error) else ""
        known = [word for word in vars(hookspecs) if word.startswith("hal_")]
        raise Broken(f"it has a hook that cannot be used: {error}", where=where, fix=nearest(hook, known)) from error
    except (Exception, SystemExit) as error:
        raise Broken(
            f"importing it raised {type(error).__name__}: {error}", where=where, fix=f"repair or uninstall {where}"
        ) from error
    return manager.hook, where
