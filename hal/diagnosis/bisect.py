"""`hal bisect`: the smallest set of operators whose kernels make a command fail while the reference serves all others.

A run is judged as `git bisect run` does: exit code 0 is good, 125 cannot tell, anything else is bad. With `output` a
run is bad when it prints something else than the run in which the reference serves every operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hal.diagnosis.command import Command, Ended
from hal.diagnosis.minimal import minimal
from hal.diagnosis.switch import line, on_kernels, variables
from hal.errors import ConfigError
from hal.policy import Policy

GOOD, BAD, UNCLEAR = "good", "bad", "unclear"
CANNOT_TELL = 125


@dataclass(frozen=True)
class Tried:
    """One run: the operators that stayed on the backend's kernels, and how it was judged."""

    kept: tuple[str, ...]
    state: str
    says: str
    seconds: float


@dataclass(frozen=True)
class BadCall:
    """The first call that HAL_CHECK, or the kernel itself, found wrong; `number` counts the calls of one use."""

    contract: str
    call: str
    number: int
    kernel: str
    text: str


@dataclass(frozen=True)
class Guilty:
    """Operators that fail together, and no part of them does; `right` counts checked calls before the first bad one."""

    operators: tuple[str, ...]
    first: BadCall | None
    right: Mapping[str, int]
    ended: str


@dataclass
class Finding:
    """All that was tried and found. `missing` says why nothing could be; `workaround` was run, and that was good."""

    operators: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)
    guilty: list[Guilty] = field(default_factory=list)
    workaround: str = ""
    missing: str = ""
    runs: int = 0


def bisect(
    command: Command,
    *,
    output: bool = False,
    policy: Policy | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Finding:
    """Find every minimal set of guilty operators of a command, one after the other.

    Args:
        output: judge by what the command prints on stdout.
        tell: gets a line before each run.

    Raises:
        ConfigError: the command cannot be run, or it does not do what HAL_OPS says.
    """
    return _Bisection(command, output, policy or Policy.current(), tell).find()


class _Bisection:
    def __init__(self, command: Command, output: bool, policy: Policy, tell: Callable[[str], None]) -> None:
        self.command, self.output, self.policy, self.tell = command, output, policy, tell
        self.found = Finding()
        self.wanted: bytes | None = None
        self.states: dict[tuple[str, ...], str] = {}

    def find(self) -> Finding:
        found = self.found
        as_it_is = self._run({}, "as it is")
        found.operators = on_kernels(as_it_is.trace)
        everything = tuple(found.operators)
        if not self.output and self._judged(everything, as_it_is) != BAD:
            state = "is good" if as_it_is.code == 0 else "cannot be judged"
            return self._nothing(f"As it is the command {state}: {found.tried[0].says}")
        if not everything:
            why = "the reference serves every operator" if as_it_is.trace else "no operator of hal was planned"
            return self._nothing(f"The command has nothing that could be switched: {why} ({_how(as_it_is)})")
        referred = self._run(variables(everything, everything, self.policy), "every operator on the reference")
        self.wanted = referred.stdout
        if self._judged((), referred) != GOOD:
            return self._nothing(
                f"The command fails with every operator on the reference as well ({_how(referred)}): "
                "the fault is not in a kernel"
            )
        if self.output and self._judged(everything, as_it_is) != BAD:
            return self._nothing("As it is the command prints what it prints with every operator on the reference")
        self._narrow(everything)
        return found

    def _narrow(self, everything: tuple[str, ...]) -> None:
        """Minimal sets, each without what was taken out for those before it, until the rest is good."""
        left = everything
        while self._fails(left):
            operators = minimal(left, self._fails)
            self.found.guilty.append(guilty := self._checked(operators))
            out = guilty.first.contract if guilty.first else operators[0]
            left = tuple(name for name in left if name != out)
        good = left if self.states[left] == GOOD else ()
        self.found.workaround = line(self._only(good))

    def _nothing(self, why: str) -> Finding:
        self.found.missing = f"{why}."
        return self.found

    def _fails(self, kept: tuple[str, ...]) -> bool:
        if kept not in self.states:
            self._judged(kept, self._run(self._only(kept), f"kept: {', '.join(kept)}"))
        return self.states[kept] == BAD

    def _only(self, kept: Collection[str]) -> dict[str, str]:
        """Variables under which `kept` stay on their kernels and all others go to the reference."""
        off = tuple(name for name in self.found.operators if name not in kept)
        return variables(off, self.found.operators, self.policy)

    def _run(self, words: Mapping[str, str], what: str, trace: str = "plan") -> Ended:
        self.found.runs += 1
        self.tell(f"run {self.found.runs}: {what}")
        return self.command.run(words, trace)

    def _judged(self, kept: tuple[str, ...], ended: Ended) -> str:
        self._followed(kept, ended)
        state, says = self._state(ended)
        self.states[kept] = state
        self.found.tried.append(Tried(kept, state, says, ended.seconds))
        return state

    def _state(self, ended: Ended) -> tuple[str, str]:
        if ended.code is None or ended.code == CANNOT_TELL:
            return UNCLEAR, ended.says
        if ended.code and not ended.trace and self.found.operators:
            return UNCLEAR, f"{ended.says} before anything was planned: {ended.last}"
        if ended.code:
            return BAD, ended.says
        if self.output and ended.stdout != self.wanted:
            return BAD, "other output"
        return GOOD, "same output" if self.output else ended.says

    def _followed(self, kept: Sequence[str], ended: Ended) -> None:
        """The run was what it was meant to be."""
        for contract, kernels in on_kernels(ended.trace).items():
            if contract not in kept:
                raise ConfigError(
                    f"{contract} should have run on the reference and was served by {kernels[0]}",
                    where="hal bisect",
                    fix="take rules for operators out of the program (`hal.use(ops=...)`), and set HAL_OPS instead",
                )

    def _checked(self, operators: tuple[str, ...]) -> Guilty:
        """The first bad call of guilty operators: each compared with the reference, all others on the reference."""
        right: Counter[str] = Counter()
        for contract in operators:
            words = {**self._only(operators), "HAL_CHECK": contract}
            ended = self._run(words, f"HAL_CHECK={contract}", f"calls:{contract}")
            bad = next((entry for entry in ended.trace if "error" in entry), None)
            right.update(entry["call"] for entry in ended.trace if "error" not in entry)
            if bad:
                first = BadCall(contract, bad["call"], bad["number"], bad["kernel"], bad["error"])
                return Guilty(operators, first, dict(right), ended.says)
        return Guilty(operators, None, dict(right), ended.says)


def _how(ended: Ended) -> str:
    return f"{ended.says}: {ended.last}" if ended.last else ended.says
