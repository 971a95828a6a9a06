"""The plan: per call the kernel that serves it, and the reason why each other one does not. No torch, no device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from hal import ops, permission, plugins
from hal.constraints import Facts
from hal.contract import Contract
from hal.environment import nearest
from hal.errors import Forbidden, NoKernel, PlanError, Uncovered, UnknownName
from hal.kernel import Kernel
from hal.lock import Lock
from hal.policy import Policy
from hal.selection import REFERENCE, target_of
from hal.target import Target

SHOWN = 3
"""Blockers whose reasons an error spells out; those of the others are in its `blockers`, and in `hal plan`."""


@dataclass(frozen=True)
class Call:
    """One use of a contract: static sizes, ranges of dynamic ones, dtypes and layouts of arguments, attributes."""

    contract: str
    name: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, or its contract's."""
        return self.name or self.contract

    def facts(self, target: Target) -> Facts:
        """What kernels may ask about."""
        contract = ops.get(self.contract)
        dynamic, layouts = {**contract.dynamic, **self.ranges}, {**contract.promises, **self.layouts}
        return Facts({**dynamic, **self.sizes}, self.dtypes, layouts, self.attributes, target.features)


@dataclass(frozen=True)
class Lost:
    """A kernel that does not serve a call, and why."""

    kernel: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The answer for one call: kernels in order (several where they split a range), or the parts of a composite."""

    call: Call
    kernels: tuple[Kernel, ...]
    parts: tuple[Choice, ...]
    lost: tuple[Lost, ...]

    @property
    def winner(self) -> str:
        """Who serves the call, in words."""
        return " | ".join(kernel.id for kernel in self.kernels) or " + ".join(part.winner for part in self.parts)

    @property
    def decision(self) -> str:
        """As `winner`, with the versions of kernels and contract: what a lock file keeps."""
        served = " | ".join(f"{kernel.id}@{kernel.version}" for kernel in self.kernels)
        contract = f"{self.call.contract}@{ops.get(self.call.contract).version}"
        return f"{contract}: {served}" if served else " + ".join(part.decision for part in self.parts)


@dataclass(frozen=True)
class Blocker:
    """Why a call cannot be served; `word` of HAL_ALLOW would do, or a `hole` is left in a range of sizes."""

    text: str
    word: str = ""
    hole: bool = False


@dataclass(frozen=True)
class Plan:
    """The immutable answer for all calls."""

    target: Target
    policy: Policy
    choices: tuple[Choice, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for equal decisions: the same versions of the same kernels for the same calls on the same chip."""
        words = json.dumps([self.target.name, *([c.call.title, c.decision] for c in self.choices)])
        return hashlib.sha256(words.encode()).hexdigest()

    @property
    def lock(self) -> Lock:
        """The decisions, to be kept in a file: `plan.lock.write("hal.lock")`, then HAL_CONFIG=hal.lock."""
        return Lock(self.target.asked, {choice.call.title: choice.decision for choice in self.choices})


def plan(calls: Iterable[Call], *, target: Target | None = None, policy: Policy | None = None) -> Plan:
    """Choose a kernel for every call.

    Order: the rule of HAL_OPS that fits, else the backend's own list, best first. A composite without an eligible
    kernel is planned part by part.

    Raises:
        NoKernel: some calls cannot be served; every blocker is listed.
        Uncovered: the only blockers are sizes in a declared range that no kernel serves.
        Forbidden: the only blockers are kernels that HAL_ALLOW does not permit.
        Drift: the lock file of HAL_CONFIG says something else.
        UnknownName: a rule of HAL_OPS names an operator or a kernel that does not exist.
    """
    policy = policy or Policy.current()
    target = target or target_of(policy)
    kernels = [*kernels_of(target), *(references() if target.backend != REFERENCE else ())]
    _check_rules(policy, kernels)
    barred = permission.barred(kernels, target, policy)
    blockers: list[Blocker] = []
    choices = tuple(_choose(call, policy, target, kernels, barred, blockers) for call in calls)
    if blockers:
        raise _blocked(target, blockers, policy.allow)
    made = Plan(target, policy, choices)
    if policy.lock:
        policy.lock.check(made.lock, policy.origins.get("lock", ""))
    return made


def kernels_of(target: Target) -> list[Kernel]:
    """The kernels of a target's backend, those of kernel packs behind them; the references are a backend too."""
    return references() if target.backend == REFERENCE else plugins.load(target.backend).kernels(target)


def references() -> list[Kernel]:
    """The references as kernels, composites through their parts."""
    return [
        Kernel(f"reference.{contract.short}", contract.name, contract.reference)
        for contract in ops.CONTRACTS.values()
        if not contract.parts
    ]


def _blocked(target: Target, blockers: list[Blocker], allowed: frozenset[str]) -> PlanError:
    """The one error for all blockers; its text has the reasons of some."""
    texts = tuple(blocker.text for blocker in blockers)
    rest = [text.partition(": ")[0] for text in texts[SHOWN:]]
    first = "; ".join(texts[:SHOWN]) + (f"; and also {', '.join(rest)}" if rest else "")
    what = f"{target.name} cannot serve {len(texts)} call{'s' if len(texts) > 1 else ''}: {first}"
    words = {blocker.word for blocker in blockers}
    if "" not in words:
        fix = f"set HAL_ALLOW={','.join(sorted(words | allowed))} to permit it"
        return Forbidden(what, where="plan", fix=fix, blockers=texts)
    fix = "set HAL_ALLOW=reference to let the references serve them" if target.name != REFERENCE else ""
    kind = Uncovered if all(blocker.hole for blocker in blockers) else NoKernel
    return kind(what, where="plan", fix=fix, blockers=texts)


def _check_rules(policy: Policy, kernels: list[Kernel]) -> None:
    """Every glob of HAL_OPS names something."""
    for glob, choices in policy.ops:
        named = [kernel.id for kernel in kernels if fnmatchcase(kernel.contract, glob)]
        if not any(fnmatchcase(contract, glob) for contract in ops.CONTRACTS):
            raise UnknownName(
                f"no operator is called {glob!r}", where=policy.origins["ops"], fix=nearest(glob, ops.CONTRACTS)
            )
        for choice in choices:
            if not any(fnmatchcase(kernel, choice.removeprefix("!")) for kernel in named):
                raise UnknownName(
                    f"no kernel of {glob} is called {choice.removeprefix('!')!r}",
                    where=policy.origins["ops"],
                    fix=nearest(choice, named),
                )


def _choose(
    call: Call,
    policy: Policy,
    target: Target,
    kernels: list[Kernel],
    barred: Mapping[str, tuple[str, str]],
    blockers: list[Blocker],
) -> Choice:
    contract = ops.get(call.contract)
    facts = call.facts(target)
    lost: list[Lost] = []
    eligible = []
    word = ""
    for kernel in _ordered(call, policy, [k for k in kernels if k.contract == call.contract], lost):
        reasons = [str(reason) for c in kernel.constraints if (reason := c.reason(facts)) is not None]
        if reasons:
            lost.append(Lost(kernel.id, "; ".join(reasons)))
        elif kernel.id in barred:
            lost.append(Lost(kernel.id, barred[kernel.id][0]))
            word = word or barred[kernel.id][1]
        else:
            eligible.append(kernel)
    chosen, hole = cover(eligible, facts)
    lost += [Lost(kernel.id, f"{chosen[0].id} comes first") for kernel in eligible if chosen and kernel not in chosen]
    if chosen and hole is None:
        return Choice(call, chosen, (), tuple(lost))
    if contract.parts:
        before = len(blockers)
        parts = tuple(_choose(_part(call, part), policy, target, kernels, barred, blockers) for part in contract.parts)
        if len(blockers) == before:
            return Choice(call, (), parts, tuple(lost))
        return Choice(call, (), (), tuple(lost))
    only_reference = word == "reference" and not any(choice.startswith(REFERENCE) for choice in _rule(call, policy))
    told = [item for item in lost if not (only_reference and item.kernel.startswith(f"{REFERENCE}."))]
    why = hole or ", ".join(f"{item.kernel}: {item.reason}" for item in told) or "no kernel is installed"
    blockers.append(Blocker(f"{call.title} ({call.contract}): {why}", "" if only_reference else word, hole is not None))
    return Choice(call, (), (), tuple(lost))


def _ordered(call: Call, policy: Policy, kernels: list[Kernel], lost: list[Lost]) -> list[Kernel]:
    """The order that the first fitting rule of HAL_OPS asks for."""
    rule = _rule(call, policy)
    if not rule:
        return kernels
    denied = [choice[1:] for choice in rule if choice.startswith("!")]
    wanted = [choice for choice in rule if not choice.startswith("!")] or ["*"]
    ordered = [kernel for glob in wanted for kernel in kernels if fnmatchcase(kernel.id, glob)]
    once = {k.id: k for k in ordered if not any(fnmatchcase(k.id, glob) for glob in denied)}
    lost += [Lost(kernel.id, "excluded by HAL_OPS") for kernel in kernels if kernel.id not in once]
    return list(once.values())


def _rule(call: Call, policy: Policy) -> tuple[str, ...]:
    """The choices of the first rule that fits; none where there is no such rule."""
    return next((choices for glob, choices in policy.ops if fnmatchcase(call.contract, glob)), ())


def cover(kernels: list[Kernel], facts: Facts) -> tuple[tuple[Kernel, ...], str | None]:
    """The shortest head of `kernels` that serves every dynamic size, and the hole that is left, in words.

    Kernels may cut one dynamic size into intervals; a kernel that cuts another one does not help to fill a hole.
    """
    chosen: list[Kernel] = []
    open_: dict[str, list[tuple[int, int]]] | None = None
    for kernel in kernels:
        cuts = served(kernel, facts)
        chosen.append(kernel)
        if not cuts:
            return tuple(chosen), None
        if len(cuts) > 1:
            chosen.pop()
            continue
        ((name, interval),) = cuts.items()
        whole = facts.dims[name]
        assert isinstance(whole, tuple)
        open_ = open_ if open_ is not None else {name: [whole]}
        if name not in open_:
            chosen.pop()
            continue
        open_[name] = [piece for gap in open_[name] for piece in _without(gap, interval)]
        if not open_[name]:
            return tuple(chosen), None
    holes = [
        f"{name} {low}..{high} is served by no kernel" for name, gaps in (open_ or {}).items() for low, high in gaps
    ]
    return tuple(chosen), ", ".join(holes) or None


def served(kernel: Kernel, facts: Facts) -> dict[str, tuple[int, int]]:
    """Per dynamic size that the kernel does not serve whole, the interval that it does."""
    cuts: dict[str, tuple[int, int]] = {}
    for constraint in kernel.constraints:
        whole = facts.dims.get(constraint.name) if constraint.kind == "dim" else None
        if constraint.interval is None or not isinstance(whole, tuple):
            continue
        low, high = cuts.get(constraint.name, whole)
        cut = (max(low, constraint.interval[0]), min(high, constraint.interval[1]))
        if cut != whole:
            cuts[constraint.name] = cut
    return cuts


def _without(gap: tuple[int, int], interval: tuple[int, int]) -> list[tuple[int, int]]:
    low, high = gap
    pieces = [(low, min(high, interval[0] - 1)), (max(low, interval[1] + 1), high)]
    return [piece for piece in pieces if piece[0] <= piece[1]]


def _part(call: Call, part: str) -> Call:
    """A part's call: what its signature shares with the composite's, and sizes that neither names, such as `inter`."""
    contract: Contract = ops.get(part)
    signature, whole = contract.parsed, ops.get(call.contract).parsed
    arguments = {argument.name for argument in signature.arguments}
    return Call(
        part,
        name=f"{call.title}.{contract.short}",
        sizes={name: n for name, n in call.sizes.items() if name in signature.dims or name not in whole.dims},
        ranges={name: size for name, size in call.ranges.items() if name in signature.dims},
        dtypes={name: kind for name, kind in call.dtypes.items() if name in arguments},
        layouts={name: kind for name, kind in call.layouts.items() if name in arguments},
        attributes={name: value for name, value in call.attributes.items() if name in signature.attributes},
    )
