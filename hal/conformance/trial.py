"""One call of one kernel under watch: planned, bound, run between guards, judged.

What is wrong is raised as `Wrong`; its first word is the check that failed: plan, raised, ran, borrowed, guards,
mutated, aliased, host, parity, ...
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from hal import ops
from hal.binding import bind
from hal.conformance.arguments import Guarded, same_bits, snapshot, tensors
from hal.conformance.samples import Sample
from hal.errors import HalError, KernelError, PlanError
from hal.kernel import Kernel
from hal.numerics.contracts import expect
from hal.numerics.expectation import Expectation
from hal.numerics.precision import Precision
from hal.planning import Call, Plan, plan
from hal.policy import Policy
from hal.selection import REFERENCE
from hal.target import Target

__all__ = ["Outcome", "Subject", "Wrong", "judge"]

Watch = Callable[[], AbstractContextManager[Any]]


class Wrong(Exception):
    """A check that failed, and what it found."""

    def __init__(self, check: str, text: str) -> None:
        super().__init__(f"{check}: {text}")
        self.check, self.text = check, text


@dataclass(frozen=True)
class Outcome:
    """What a call returned, and its arguments after it."""

    outputs: Any
    arguments: tuple[Any, ...]

    def tensors(self, contract: str) -> dict[str, Tensor]:
        """Returned tensors and mutated arguments by name, to compare two runs."""
        signature = ops.get(contract).parsed
        returned = self.outputs if isinstance(self.outputs, tuple | list) else (self.outputs,)
        named = zip((argument.name for argument in signature.returns), returned, strict=False)
        found: dict[str, Tensor] = {name: value for name, value in named if isinstance(value, Tensor)}
        mutated = {argument.name for argument in signature.arguments if argument.mutated}
        for path, tensor in tensors(contract, self.arguments):
            if path.split(".")[0] in mutated:
                found[path] = tensor
        return found


@dataclass(frozen=True)
class Subject:
    """The kernel under test on its target."""

    kernel: Kernel
    target: Target
    watch: Watch = nullcontext

    @property
    def policy(self) -> Policy:
        """Only this kernel may serve its contract; parts of a composite may be served by anyone."""
        rule = f"{self.kernel.contract}={self.kernel.id}"
        return Policy.current(backend=self.target.name, ops=rule, allow="unverified,reference,nondeterministic")

    def plan(self, call: Call) -> Plan:
        """The plan in which this kernel serves `call`.

        Raises:
            Wrong: it does not.
        """
        try:
            made = plan([call], target=self.target, policy=self.policy)
        except PlanError as error:
            raise Wrong("plan", f"the kernel declares this call and is refused: {error}") from error
        if [kernel.id for kernel in made.choices[0].kernels] != [self.kernel.id]:
            lost = "; ".join(f"{item.kernel}: {item.reason}" for item in made.choices[0].lost)
            raise Wrong("plan", f"the kernel declares this call and does not serve it: {lost}")
        return made

    def expectation(self, sample: Sample, arguments: Sequence[Any] | None = None) -> Expectation:
        """What a call of `sample` must return; made on the host, from fresh arguments where none are given."""
        given = sample.arguments() if arguments is None else arguments
        return expect(sample.contract, given, sample.attributes, Precision.of(self.kernel), sample.layouts)

    def run(self, call: Call, arguments: Sequence[Any]) -> Outcome:
        """Run a call on copies of `arguments`, under every watch.

        Raises:
            Wrong: the first thing that is wrong apart from the values.
        """
        contract = call.contract
        made = self.plan(call)
        guarded = Guarded(contract, arguments)
        before = snapshot(contract, guarded.arguments)
        with ExitStack() as stack:
            runs = stack.enter_context(_counted(self.kernel))
            if self.target.backend != REFERENCE and not self.kernel.delegates:
                stack.enter_context(_sealed(ops.get(contract).reference))
            seen = stack.enter_context(self.watch())
            stack.enter_context(torch.no_grad())
            try:
                outputs = bind(made)[call.title](*guarded.arguments)
            except KernelError as error:
                if isinstance(error.__cause__, Wrong):
                    raise error.__cause__ from None
                raise Wrong("raised", error.what) from error
            except HalError as error:
                raise Wrong("raised", f"{type(error).__name__}: {error}") from error
        if not runs:
            raise Wrong("ran", f"{self.kernel.code} was never called: something else answered")
        self._inspect(contract, guarded, before, outputs, seen)
        return Outcome(outputs, guarded.arguments)

    def _inspect(self, contract: str, guarded: Guarded, before: dict[str, Tensor], outputs: Any, seen: Any) -> None:
        if seen and not self.kernel.host_sync:
            names = ", ".join(dict.fromkeys(map(str, seen)))
            raise Wrong("host", f"{len(seen)} operators ran on the host: {names}")
        if broken := guarded.broken():
            raise Wrong("guards", f"wrote outside of {', '.join(broken)}")
        mutated = {argument.name for argument in ops.get(contract).parsed.arguments if argument.mutated}
        for path, tensor in tensors(contract, guarded.arguments):
            free = path.split(".")[0] in mutated and not path.endswith("block_table")
            if not free and not same_bits(tensor, before[path]):
                raise Wrong("mutated", f"changed {path}, which the signature does not allow")
        owned = {tensor.untyped_storage().data_ptr(): path for path, tensor in tensors(contract, guarded.arguments)}
        for tensor in outputs if isinstance(outputs, tuple | list) else (outputs,):
            if isinstance(tensor, Tensor) and tensor.numel() and tensor.untyped_storage().data_ptr() in owned:
                path = owned[tensor.untyped_storage().data_ptr()]
                raise Wrong("aliased", f"returned memory of the argument {path}")


def judge(wanted: Expectation, outcome: Outcome, check: str = "parity") -> float:
    """The margin of a call's outputs (1 is the bound).

    Raises:
        Wrong: the verdict.
    """
    verdict = wanted.judge(outcome.outputs, outcome.arguments)
    if not verdict:
        raise Wrong(check, verdict.text)
    return verdict.margin


@contextmanager
def _counted(kernel: Kernel) -> Iterator[list[None]]:
    """Grows by one with every call of the kernel's function."""
    place, name = kernel.code.split(":")
    module = importlib.import_module(place)
    function: Callable[..., Any] = getattr(module, name)
    runs: list[None] = []

    def counting(*arguments: Any, **attributes: Any) -> Any:
        runs.append(None)
        return function(*arguments, **attributes)

    setattr(module, name, counting)
    try:
        yield runs
    finally:
        setattr(module, name, function)


@contextmanager
def _sealed(reference: str) -> Iterator[None]:
    """While a kernel is under test, the reference it is compared with must not do its work, however it is imported."""
    place, name = reference.split(":")
    function = getattr(importlib.import_module(place), name)
    assert isinstance(function, FunctionType)
    code = function.__code__
    function.__code__ = _borrowed.__code__
    try:
        yield
    finally:
        function.__code__ = code


def _borrowed(*arguments: Any, **attributes: Any) -> Any:
    from hal.conformance.trial import Wrong

    raise Wrong("borrowed", "the kernel called the reference that it is compared with")
