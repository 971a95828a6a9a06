"""One of two backends that are compared, in a process of its own: an emulated chip may want one for itself."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hal.conformance.inside import Asked
from hal.conformance.worker import Worker
from hal.errors import Broken, HalError

if TYPE_CHECKING:
    from hal.policy import Policy
    from hal.target import Target

__all__ = ["Inside", "Ran", "Side", "Told"]


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
    """

    kernel: str = ""
    why: str = ""
    error: str = ""
    found: bytes = b""

    @property
    def served(self) -> bool:
        """Whether a kernel answered, or failed to."""
        return not self.why

    def outcome(self, arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Outputs, and fresh `arguments` as they are after the call."""
        import torch

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

    def run(self, contract: str, title: str) -> Ran:  # type: ignore[override]
        """One sample of a contract, served by whatever this backend plans for it."""
        answer = self.ask(("run", (contract, title)))
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


@dataclass
class Inside:
    """Answers in the side's process."""

    asked: Asked
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)
    _chip: tuple[Policy, Target] | None = None

    def answer(self, word: str, argument: Any) -> Any:
        """`tell` or `run`."""
        return {"tell": self.tell, "run": self.run}[word](argument)

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
