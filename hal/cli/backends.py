"""`hal backends`: what is installed, in which state, and which chips it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, show, table

STYLES = {"ready": "green", "no device": "yellow", "not installed": "dim"}


@dataclass(frozen=True)
class State:
    """A backend as this machine sees it.

    `state` is `ready`, `no device`, `not installed`, or the name of the error (`Broken`, `ApiMismatch`, `Conflict`);
    `tiers` counts kernels on the first chip by the evidence that there is; `why` is the error's paragraph,
    or the fact `advice` of a ready backend's targets.
    """

    name: str
    distribution: str
    version: str
    state: str
    targets: tuple[str, ...] = ()
    kernels: int = 0
    tiers: dict[str, int] = field(default_factory=dict)
    why: str = ""


def command(json: Json = False) -> None:
    """List backends: installed or known, their state, and the chips that each found."""
    found = list(states())
    show([asdict(state) for state in found], json, lambda: overview(found))


def states() -> Iterator[State]:
    """Every installed backend, then those that chips are described for but no package provides."""
    from hal import evidence, plugins
    from hal.errors import HalError
    from hal.target import described

    entries = plugins.installed()
    for name, entry in entries.items():
        distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "")
        try:
            loaded = plugins.load(name)
            targets = loaded.targets()
            kernels = loaded.kernels(targets[0]) if targets else []
            records = evidence.of_backend(name) if targets else ()
            tiers = dict(Counter(evidence.tier(kernel, targets[0], records) for kernel in kernels))
        except HalError as error:
            yield State(name, distribution, version, type(error).__name__, why=str(error))
            continue
        names = tuple(target.name for target in targets)
        state = "ready" if targets else "no device"
        advice = " ".join(f"{said}." for target in targets for said in target.facts.get("advice", ()))
        yield State(name, distribution, version, state, names, len(kernels), tiers, advice)
    for name in dict.fromkeys(target.backend for target in described()):
        if name not in entries:
            yield State(name, f"hal-{name}", "", "not installed", why=f"pip install hal-{name}")


def overview(found: list[State]) -> Table:
    """Backends as a table."""
    made = table("backend", "package", "state", "chips here", "kernels", "")
    for each in found:
        made.add_row(
            each.name,
            f"{each.distribution} {each.version}".rstrip(),
            Text(each.state, style=STYLES.get(each.state, "red")),
            ", ".join(each.targets),
            ", ".join(f"{count} {tier}" for tier, count in each.tiers.items()),
            Text(each.why, style="dim"),
        )
    return made
