"""Whether a whole model runs on a chip, operator by operator, before a weight is loaded and also where the chip is not.

All blockers at once: a model that fails at its seventh operator has as many reasons as it has blocked calls. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hal import plugins
from hal.environment import nearest
from hal.errors import BackendError, NotInstalled, PlanError, UnknownName
from hal.models.deepseek_v4.calls import Numerics, calls, uses
from hal.models.deepseek_v4.config import DeepseekV4Config
from hal.planning import Call, Choice, plan
from hal.policy import Policy
from hal.selection import layouts_of, target_of
from hal.target import Target, described

LAYOUTS_FACT = "cache_layouts"
"""The fact of `profiles.toml` that names a chip's cache layouts, for chips whose backend is not installed."""


@dataclass(frozen=True)
class Verdict:
    """What serves one call of a model, or what blocks it.

    Attributes:
        blocks: how many blocks of the model make the call.
        choice: the plan's answer; None where the call is blocked.
        blockers: every reason; empty where the call is served.
    """

    call: Call
    blocks: int
    choice: Choice | None
    blockers: tuple[str, ...]


def target_named(name: str) -> Target:
    """The chip called `name`: one described in `profiles.toml`, or what the installed backend of that name finds here.

    Raises:
        UnknownName: no such chip; the text names the nearest, or the chips of that backend.
        BackendError: as `hal.target_of`.
    """
    chips = {target.name: target for target in described()}
    if name in chips:
        return chips[name]
    kinds = [chip for chip, target in chips.items() if target.backend == name]
    if name in ("auto", "reference") or (name in plugins.installed() and plugins.load(name).targets()):
        return target_of(Policy.current(backend=name))
    if kinds:
        raise UnknownName(f"{name} is several chips", where="--on", fix=f"name one of {', '.join(kinds)}")
    raise UnknownName(f"no chip is called {name!r}", where="--on", fix=nearest(name, [*chips, *plugins.installed()]))


def installed(target: Target) -> bool:
    """Whether a package with kernels for the chip is installed."""
    return target.backend == "reference" or target.backend in plugins.installed()


def layouts_on(target: Target) -> Sequence[str] | None:
    """Cache layouts of a chip, best first: its backend's, else those that are published for it; None: not known."""
    try:
        return layouts_of(target)
    except BackendError:
        fact = target.facts.get(LAYOUTS_FACT)
        return tuple(fact["value"]) if fact else None


def numerics_on(target: Target, config: DeepseekV4Config, dtype: str | None = None) -> Numerics:
    """What the model stores and rounds how on a chip that may not be here; `dtype` as in `Numerics.on`."""
    allow = Policy.current().allow
    return Numerics.on(config, target.device_type, layouts_on(target), dtype=dtype, allow=allow)


def survey(config: DeepseekV4Config, numerics: Numerics, target: Target, policy: Policy, context: int) -> list[Verdict]:
    """The verdict on every operator call of a model on a chip, MTP blocks included."""
    counts = uses(config)
    return [_verdict(call, counts[call.title], target, policy) for call in calls(config, numerics, context=context)]


def _verdict(call: Call, blocks: int, target: Target, policy: Policy) -> Verdict:
    try:
        return Verdict(call, blocks, plan([call], target=target, policy=policy).choices[0], ())
    except NotInstalled:
        fix = f"pip install hal-{target.backend}"
        return Verdict(call, blocks, None, (f"no backend for {target.name} is installed ({fix})",))
    except PlanError as error:
        return Verdict(call, blocks, None, error.blockers or (str(error),))
    except BackendError as error:
        return Verdict(call, blocks, None, (str(error),))
