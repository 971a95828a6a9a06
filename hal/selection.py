"""Which backend a policy means: `name[:chip][@emulated]`, `auto` or `reference`."""

from __future__ import annotations

import sys

from hal import plugins
from hal.errors import Ambiguous, BackendError, NoDevice
from hal.policy import Policy
from hal.target import Target

REFERENCE = "reference"


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
    name, _, emulated = asked.partition("@")
    backend, _, chip = name.partition(":")
    loaded = plugins.load(backend)
    targets = loaded.targets()
    fitting = [target for target in targets if not chip or target.name.partition(":")[2] == chip]
    if emulated or not fitting:
        what = f"an emulator for {backend!r} is not installed" if emulated else f"no {name} is in this machine"
        have = ", ".join(target.name for target in targets) or "nothing"
        raise NoDevice(what, where=policy.origins.get("backend", ""), fix=f"use one of: {have}, reference")
    return fitting[0]


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
        accelerators += targets[:1]
        if not targets:
            why.append(f"{name}: no device")
    if len(accelerators) > 1:
        lines = " or ".join(f"export HAL_BACKEND={target.name}" for target in accelerators)
        raise Ambiguous("several accelerators are here", where="HAL_BACKEND=auto", fix=lines)
    if accelerators:
        return accelerators[0]
    if "auto" not in _SAID:
        _SAID.add("auto")
        print("hal: no accelerator, using cpu" + (f" ({'; '.join(why)})" if why else ""), file=sys.stderr)
    return plugins.load("cpu").targets()[0]


_SAID: set[str] = set()
