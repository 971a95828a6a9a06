"""Which backend a policy means: `name[:chip][@emulated]`, `auto` or `reference`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points

from hal import plugins
from hal.errors import Ambiguous, BackendError, Broken, HalError, NoDevice, NotInstalled, UnknownName
from hal.policy import Policy
from hal.target import Target

REFERENCE = "reference"
HOST = "host"
"""Feature of a target that computes on this machine's processor, as cpu does: `auto` never takes it."""
EMULATORS = "hal.emulators"
"""Entry-point group: backend name -> `start(chip) -> Target`; an empty chip means the emulator's default."""


def target_of(policy: Policy) -> Target:
    """The target that `policy.backend` names.

    Raises:
        NotInstalled, NoDevice, Ambiguous, Broken, ApiMismatch: the text says which and what to do.
    """
    asked = policy.backend
    if asked == REFERENCE:
        return Target(REFERENCE, "cpu")
    if asked == "auto":
        return _auto()
    name, at, emulated = asked.partition("@")
    backend, _, chip = name.partition(":")
    if at:
        return _emulated(backend, chip, emulated)
    loaded = plugins.load(backend)
    targets = loaded.targets()
    fitting = [target for target in targets if not chip or target.name.partition(":")[2] == chip]
    if not fitting:
        have = ", ".join([*(target.name for target in targets), REFERENCE])
        raise NoDevice(
            f"no {name} is in this machine", where=policy.origins.get("backend", ""), fix=f"use one of: {have}"
        )
    return fitting[0]


def _emulated(backend: str, chip: str, word: str) -> Target:
    """The stand-in for a chip, started. Emulators are a distribution of their own; only `@emulated` imports one."""
    if word != "emulated":
        raise UnknownName(f"{word!r} follows @", where="HAL_BACKEND", fix="write name[:chip]@emulated")
    plugins.load(backend)
    starts = {entry.name: entry for entry in entry_points(group=EMULATORS)}
    if backend not in starts:
        raise NotInstalled(
            f"no installed package emulates {backend!r}",
            where=f"HAL_BACKEND={backend}@emulated",
            fix="run `pip install hal-emulators`",
        )
    try:
        start: Callable[[str], Target] = starts[backend].load()
        return start(chip)
    except HalError:
        raise
    except Exception as error:
        raise Broken(f"its emulator raised {type(error).__name__}: {error}", where=f"{backend}@emulated") from error


def layouts_of(target: Target) -> list[str] | None:
    """Cache layouts and weight schemes of a target, best first; None: those that every torch device can run."""
    return None if target.backend == REFERENCE else plugins.load(target.backend).layouts(target)


def _auto() -> Target:
    """Exactly one accelerator: it. Several: an error. None: the CPU, said once."""
    accelerators: list[Target] = []
    why: list[str] = []
    for name in plugins.installed():
        if name == "cpu":
            continue
        try:
            targets = plugins.load(name).targets()
        except BackendError as error:
            why.append(f"{name}: {error}")
            continue
        accelerators += [target for target in targets if HOST not in target.features][:1]
        if not targets:
            why.append(f"{name}: no device")
    if len(accelerators) > 1:
        lines = " or ".join(f"`export HAL_BACKEND={target.name}`" for target in accelerators)
        raise Ambiguous("several accelerators are here", where="HAL_BACKEND=auto", fix=f"run {lines}")
    if accelerators:
        return accelerators[0]
    if "auto" not in _SAID:
        _SAID.add("auto")
        print("hal: no accelerator, using cpu" + (f" ({'; '.join(why)})" if why else ""), file=sys.stderr)
    return plugins.load("cpu").targets()[0]


_SAID: set[str] = set()
