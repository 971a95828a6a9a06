"""Which operators of a run are on a backend's kernels, and the variables that put some of them on the reference."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hal import ops
from hal.policy import Policy
from hal.selection import REFERENCE


def on_kernels(plan: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """From the lines of HAL_TRACE=plan: operators that kernels of a backend serve -> those kernels.

    A composite that is served by its parts has none of its own; its parts have lines too.
    """
    found: dict[str, dict[str, None]] = {}
    for entry in plan:
        kernels = () if entry["parts"] else entry["kernel"].split(" | ")
        for kernel in kernels:
            if not kernel.startswith(f"{REFERENCE}."):
                found.setdefault(entry["contract"], {})[kernel] = None
    return {contract: tuple(kernels) for contract, kernels in found.items()}


def variables(off: Collection[str], operators: Collection[str], policy: Policy) -> dict[str, str]:
    """What to set so that of `operators` those in `off` run on the reference and all else runs as `policy` says.

    The rules of the user stay behind the new ones: the first that fits an operator decides. A composite has no kernel
    of the reference; its own kernels are taken out, and parts that nothing else runs on kernels go to the reference.
    A lock would hold the plan as it is, so its chip is kept and it is not.
    """
    if not off:
        return {}
    referred: dict[str, None] = {}
    rules = []
    for contract in off:
        if parts := ops.get(contract).parts:
            rules.append(f"{contract}=!*")
            referred |= dict.fromkeys(part for part in parts if part not in operators)
        else:
            referred[contract] = None
    rules += [f"{contract}={REFERENCE}.*" for contract in referred]
    rules += [f"{glob}={'|'.join(choices)}" for glob, choices in policy.ops]
    made = {"HAL_OPS": ";".join(rules), "HAL_ALLOW": ",".join(sorted({*policy.allow, REFERENCE}))}
    return made | ({"HAL_CONFIG": "", "HAL_BACKEND": policy.backend} if policy.lock else {})


def line(made: Mapping[str, str]) -> str:
    """Variables as one writes them in front of a command."""
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in made.items())
