"""Cases, generated from declarations: a kernel, its contract's samples and laws, and the edges of its constraints.

A case's name, `contract/kernel/kind/title`, is all that is needed to run it again; random values follow from names.

| kind | what must hold |
|---|---|
| parity | every sample that the kernel declares: values, and nothing else touched |
| edge | the same on values just inside each constraint that no sample has |
| repeat | running twice gives the same bits, where the kernel is declared deterministic |
| law | the contract's laws |
| refusal | values just outside each constraint are refused, with the declared reason |
| hidden | what is refused would not have worked: neither too much nor too little is declared |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from hal import plugins
from hal.conformance.arguments import same_bits
from hal.conformance.edges import Outside, barrier, eligible, inside, nearest, outside
from hal.conformance.laws import CAPTURED, Law, laws_of
from hal.conformance.samples import Sample, samples
from hal.conformance.samples.variants import variant
from hal.conformance.trial import Subject, Wrong, judge
from hal.errors import NoKernel, PlanError, UnknownName
from hal.kernel import Kernel
from hal.planning import Call, plan, references
from hal.policy import Policy
from hal.selection import REFERENCE, target_of
from hal.target import Target

__all__ = ["Case", "cases_of", "find", "subjects", "unlike"]

QUICK = 2
"""Samples per law, and repeated runs, of a quick run."""


@dataclass(frozen=True)
class Case:
    """One thing to show of one kernel. `body` returns a margin (1 is the bound) or None, and raises `Wrong`."""

    kernel: Kernel
    kind: str
    title: str
    body: Callable[[Subject], float | None]
    sample: Sample | None = None

    @property
    def name(self) -> str:
        """`contract/kernel/kind/title`."""
        return f"{self.kernel.contract}/{self.kernel.id}/{self.kind}/{self.title}"

    def run(self, subject: Subject) -> float | None:
        """The margin, where the case has one.

        Raises:
            Wrong: what is wrong.
        """
        return self.body(subject)


def subjects(backend: str, glob: str = "*") -> list[Subject]:
    """The kernels of `backend` (`name[:chip][@emulated]` or `reference`) on its first chip, best first.

    Those that nothing can run here are left out: their chip lacks a feature, or their library is not installed.

    Raises:
        UnknownName: there is no such kernel.
        NoKernel: none of them can run here.
    """
    policy = Policy.current(backend=backend, ops="", allow="unverified")
    target = target_of(policy)
    watch = _watch(target)
    every = references() if target.backend == REFERENCE else plugins.load(target.backend).kernels(target)
    found = [kernel for kernel in every if fnmatchcase(kernel.id, glob)]
    if not found:
        raise UnknownName(f"{target.name} has no kernel that fits {glob!r}", where="--kernel", fix="see `hal ops`")
    barriers = {kernel.id: barrier(kernel, target) for kernel in found}
    if all(barriers.values()):
        why = "; ".join(f"{name}: {reason}" for name, reason in barriers.items())
        raise NoKernel(f"{target.name} can run none of these kernels: {why}", where="--kernel", fix="see `hal ops`")
    return [Subject(kernel, target, watch) for kernel in found if barriers[kernel.id] is None]


def _watch(target: Target) -> Callable[[], Any]:
    from contextlib import nullcontext

    if target.backend == REFERENCE:
        return nullcontext
    loaded = plugins.load(target.backend)
    return lambda: loaded.watch_host(target)


def find(name: str, backend: str) -> tuple[Case, Subject]:
    """The case called `name` of a backend, and the kernel it is of.

    Raises:
        UnknownName: there is none.
    """
    identity = name.split("/")[1] if name.count("/") >= 3 else ""
    for subject in subjects(backend, identity or "*"):
        for case in cases_of(subject.kernel, subject.target):
            if case.name == name:
                return case, subject
    raise UnknownName(f"no case is called {name!r}", where=backend, fix="copy it from the output of `hal verify`")


def cases_of(kernel: Kernel, target: Target, quick: bool = False) -> Iterator[Case]:
    """Every case of one kernel, in a fixed order; `quick` leaves out parity of samples alike and most repetitions."""
    mine = [sample for sample in samples(kernel.contract) if eligible(kernel, sample.call, target)]
    mine = mine or nearest(kernel, target)
    chosen = unlike(mine) if quick else mine
    for sample in chosen:
        yield Case(kernel, "parity", sample.title, _parity(sample), sample)
    tried = [sample for sample in chosen if not sample.once]
    if kernel.deterministic:
        for sample in _first(tried, QUICK if quick else len(tried)):
            yield Case(kernel, "repeat", sample.title, _repeated(sample), sample)
    for law in (*laws_of(kernel.contract), CAPTURED):
        fitting = [sample for sample in tried if law.applies(kernel, sample)]
        for sample in _first(fitting, QUICK if quick else len(fitting)):
            yield Case(kernel, "law", f"{law.name}/{sample.title}", _lawful(law, sample), sample)
    for title, sample in inside(kernel, target, mine):
        yield Case(kernel, "edge", title, _parity(sample), sample)
    for beyond in outside(kernel, target, mine):
        yield Case(kernel, "refusal", beyond.title, _refused(beyond))
        hidden = _real(kernel, beyond) if not quick and not target.emulated else None
        if hidden is not None:
            yield Case(kernel, "hidden", beyond.title, _unclaimed(hidden), hidden)


def unlike(found: list[Sample]) -> list[Sample]:
    """The largest sample of each kind (dtypes, layouts, attributes), and one of each with a size of zero."""
    kept: dict[Any, Sample] = {}
    for sample in found:
        empty = 0 in sample.dynamic.values()
        attributes = tuple(sorted(sample.attributes.items()))
        kind = (tuple(sample.dtypes.items()), tuple(sample.layouts.items()), attributes, empty)
        if kind not in kept or sum(sample.dynamic.values()) > sum(kept[kind].dynamic.values()):
            kept[kind] = sample
    return list(kept.values())


def _first(found: list[Sample], count: int) -> list[Sample]:
    """`count` samples spread over those with something in them."""
    full = [sample for sample in found if 0 not in sample.dynamic.values()] or found
    return full[:: max(1, len(full) // max(1, count))][:count]


def _parity(sample: Sample) -> Callable[[Subject], float]:
    def body(subject: Subject) -> float:
        wanted = subject.expectation(sample)
        return judge(wanted, subject.run(sample.call, sample.arguments(subject.target.device_type)))

    return body


def _repeated(sample: Sample) -> Callable[[Subject], None]:
    def body(subject: Subject) -> None:
        device = subject.target.device_type
        one, other = (subject.run(sample.call, sample.arguments(device)).tensors(sample.contract) for _ in range(2))
        for name, tensor in one.items():
            if not same_bits(tensor, other[name]):
                raise Wrong("repeat", f"declared deterministic, but {name} differs between two runs")

    return body


def _lawful(law: Law, sample: Sample) -> Callable[[Subject], None]:
    return lambda subject: law.holds(subject, sample)


def _refused(beyond: Outside) -> Callable[[Subject], None]:
    def body(subject: Subject) -> None:
        kernel, facts = subject.kernel, beyond.call.facts(beyond.target)
        reason = beyond.constraint.reason(facts)
        words = str(reason) if reason is not None else f"{beyond.constraint.name} "
        try:
            made = plan([beyond.call], target=beyond.target, policy=subject.policy)
        except PlanError as error:
            said = str(error)
        else:
            if kernel in made.choices[0].kernels:
                raise Wrong("refusal", f"serves {beyond.title}, which it declares it cannot: wants {words}")
            said = "; ".join(lost.reason for lost in made.choices[0].lost if lost.kernel == kernel.id)
            said = said or f"{beyond.constraint.name} is not covered"
        if words not in said:
            raise Wrong("refusal", f"refused without the declared reason {words!r}: {said}")

    return body


def _real(kernel: Kernel, beyond: Outside) -> Sample | None:
    """A sample of the call that is refused, where one can be made."""
    if beyond.constraint.kind not in ("dim", "dtype", "layout", "attribute"):
        return None
    key = (beyond.constraint.kind, beyond.constraint.name)
    value = beyond.call.facts(beyond.target)
    try:
        found = {"dim": value.dims, "dtype": value.dtypes, "layout": value.layouts, "attribute": value.attributes}
        sample = variant(kernel.contract, {key: _plain(found[key[0]][key[1]])})
        others = [c for c in kernel.constraints if c is not beyond.constraint]
        if sample is None or not eligible(replace(kernel, constraints=tuple(others)), sample.call, beyond.target):
            return None
        sample.arguments()
    except Exception:  # a sample outside of what the formats can hold
        return None
    return sample


def _plain(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _unclaimed(sample: Sample) -> Callable[[Subject], None]:
    def body(subject: Subject) -> None:
        open_ = replace(subject, kernel=replace(subject.kernel, constraints=()))
        try:
            outcome = _unconstrained(open_, sample.call, sample)
            judge(subject.expectation(sample), outcome)
        except Wrong:
            return
        raise Wrong("hidden", "declared outside, yet computed right: widen the constraint, or say so in an expectation")

    return body


def _unconstrained(subject: Subject, call: Call, sample: Sample) -> Any:
    """The kernel called as if it declared everything."""
    from hal.conformance.trial import Outcome

    arguments = sample.arguments(subject.target.device_type)
    try:
        return Outcome(subject.kernel.load()(*arguments, **call.attributes), arguments)
    except Exception as error:
        raise Wrong("raised", str(error)) from error
