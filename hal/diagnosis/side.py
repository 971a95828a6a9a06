"""One of two sides that are compared: a backend in a process of its own, for an emulated chip may want one for itself,
or a capture, which holds what a run elsewhere has returned.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from hal.conformance.inside import Asked
from hal.conformance.worker import Worker
from hal.errors import Broken, HalError

if TYPE_CHECKING:
    from hal.diagnosis.record import Capture, Recorded
    from hal.policy import Policy
    from hal.target import Target

__all__ = ["Inside", "Question", "Ran", "Side", "Taken", "Told"]


class Question(Protocol):
    """A call that both sides get: a sample of the conformance suite, or a call of a capture."""

    @property
    def contract(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def layouts(self) -> Mapping[str, str]: ...

    def arguments(self, device: Any = "cpu") -> tuple[Any, ...]:
        """Fresh ones."""


@dataclass(frozen=True)
class Told:
    """The chip of a side."""

    target: str
    emulated: bool
    allow: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """What a side made of one call.

    Attributes:
        kernel: that served it; empty where none did.
        why: none did; the reason of each that was declined.
        error: the kernel raised, or the process ended.
        found: outputs, and arguments that the contract lets change by their number, all on the host, as bytes.
        recorded: the call of a capture that has them instead.
    """

    kernel: str = ""
    why: str = ""
    error: str = ""
    found: bytes = b""
    recorded: Recorded | None = None

    @property
    def served(self) -> bool:
        """Whether a kernel answered, or failed to."""
        return not self.why

    def outcome(self, arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]] | None:
        """Outputs, and fresh `arguments` as they are after the call; None where it has not returned."""
        import torch

        if self.recorded is not None:
            return self.recorded.outputs(), self.recorded.arguments(after=True)
        if not self.found:
            return None
        outputs, changed = torch.load(io.BytesIO(self.found), weights_only=False)
        return outputs, tuple(changed.get(number, argument) for number, argument in enumerate(arguments))


class Side(Worker):
    """A backend as in HAL_BACKEND. Rules of HAL_OPS belong to one backend and do not reach it; HAL_ALLOW does."""

    inside = "hal.diagnosis.side:Inside"
    kept = ("HAL_ALLOW",)

    def tell(self) -> Told:
        """Its chip.

        Raises:
            HalError: it cannot be used.
        """
        told: Told = self._answer("tell", None)
        return told

    def run(self, question: Question) -> Ran:  # type: ignore[override]
        """One call, served by whatever this backend plans for it."""
        from hal.diagnosis.record import Recorded

        if isinstance(question, Recorded):
            answer = self.ask(("replay", (question.capture.folder, question.number)))
        else:
            answer = self.ask(("run", (question.contract, question.title)))
        if isinstance(answer, str | HalError):
            return Ran(error=str(answer))
        ran: Ran = answer
        return ran

    def _answer(self, word: str, argument: Any) -> Any:
        answer = self.ask((word, argument))
        if isinstance(answer, str):
            raise Broken(answer, where=self.backend, fix="see whether `hal verify` works with it")
        if isinstance(answer, HalError):
            raise answer
        return answer


class Taken:
    """A capture as a side: its calls are not run again."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self) -> Told:
        """The chip that it was recorded on."""
        return Told(self.capture.target, self.capture.emulated, ())

    def run(self, question: Question) -> Ran:
        """What was recorded."""
        from hal.diagnosis.record import Recorded

        assert isinstance(question, Recorded)
        return Ran(question.kernel, recorded=question)


@dataclass
class Inside:
    """Answers in the side's process."""

    asked: Asked
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)
    captures: dict[Path, Capture] = field(default_factory=dict)
    _chip: tuple[Policy, Target] | None = None

    def answer(self, word: str, argument: Any) -> Any:
        """`tell`, `run` or `replay`."""
        return {"tell": self.tell, "run": self.run, "replay": self.replay}[word](argument)

    def upset(self, word: str, argument: Any, answer: Any) -> bool:
        """A kernel that raised may leave an accelerator in no state for another call."""
        return bool(getattr(answer, "error", "")) and self.chip[1].device_type != "cpu"

    @property
    def chip(self) -> tuple[Policy, Target]:
        """The policy and the started target."""
        from hal.policy import Policy
        from hal.selection import target_of

        if self._chip is None:
            policy = Policy.current(backend=self.asked.backend)
            self._chip = policy, target_of(policy)
        return self._chip

    def tell(self, _: Any) -> Told:
        policy, target = self.chip
        return Told(target.name, target.emulated, tuple(sorted(policy.allow)))

    def run(self, named: tuple[str, str]) -> Ran:
        from hal.conformance.samples import samples

        contract, title = named
        if contract not in self.samples:
            self.samples[contract] = {sample.title: sample for sample in samples(contract)}
        sample = self.samples[contract][title]
        return self.call(sample.call, sample.arguments(self.chip[1].device_type))

    def replay(self, named: tuple[Path, int]) -> Ran:
        from hal.diagnosis.record import Capture

        folder, number = named
        if folder not in self.captures:
            self.captures[folder] = Capture(folder)
        recorded = self.captures[folder].calls[number]
        return self.call(recorded.call, recorded.arguments(self.chip[1].device_type))

    def call(self, call: Any, arguments: tuple[Any, ...]) -> Ran:
        """Plan, bind and run one call."""
        import torch

        from hal import ops
        from hal.binding import bind
        from hal.errors import PlanError
        from hal.numerics.arguments import host
        from hal.planning import plan

        policy, target = self.chip
        try:
            made = plan([call], target=target, policy=policy)
        except PlanError as error:
            return Ran(why="; ".join(error.blockers) or error.what)
        kernel = made.choices[0].winner
        try:
            with torch.no_grad():
                outputs = bind(made)[call.title](*arguments)
        except HalError as error:
            return Ran(kernel, error=str(error))
        except Exception as error:  # in the glue between a composite's parts
            return Ran(kernel, error=f"{type(error).__name__}: {error}")
        returned = outputs if isinstance(outputs, tuple | list) else () if outputs is None else (outputs,)
        signature = ops.get(call.contract).parsed.arguments
        changed = {number: host(arguments[number]) for number, named in enumerate(signature) if named.mutated}
        found = io.BytesIO()
        torch.save((tuple(host(x) for x in returned), changed), found)
        return Ran(kernel, found=found.getvalue())
