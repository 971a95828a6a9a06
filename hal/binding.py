"""From a plan to callables. After this nothing is chosen again: a kernel that raises is an error, not a retry."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, overload

from hal import environment, ops
from hal.errors import ContractError, HalError, KernelError
from hal.kernel import Kernel
from hal.planning import Call, Choice, Plan, plan, served
from hal.target import Target

Bound = Callable[..., Any]


@overload
def bind(planned: Plan) -> dict[str, Bound]: ...
@overload
def bind(planned: Call) -> Bound: ...
def bind(planned: Plan | Call) -> dict[str, Bound] | Bound:
    """Callables by name for a plan, or one for a single call. They take the arguments of the signature in order.

    Raises:
        NoKernel: a single call cannot be served.
    """
    if isinstance(planned, Call):
        made = plan([planned])
        return _bound(made.choices[0], made.target)
    return {choice.call.title: _bound(choice, planned.target) for choice in planned.choices}


def _bound(choice: Choice, target: Target) -> Bound:
    """A call, or a part of one: a composite's parts are watched as its calls are."""
    return _watched(_made(choice, target), choice, target)


def _watched(bound: Bound, choice: Choice, target: Target) -> Bound:
    """What HAL_TRACE and HAL_CHECK ask for; nothing is wrapped or imported where neither is set."""
    variables = environment.read()
    if not variables.keys() & {"HAL_TRACE", "HAL_CHECK"}:
        return bound
    from hal.observing import watched

    return watched(bound, choice, target, variables)


def _made(choice: Choice, target: Target) -> Bound:
    attributes = dict(choice.call.attributes)
    if choice.parts:
        contract = ops.get(choice.call.contract)
        module, name = contract.reference.split(":")
        parts = SimpleNamespace(**{ops.get(p.call.contract).short: _bound(p, target) for p in choice.parts})
        return partial(getattr(importlib.import_module(module), name), parts=parts, **attributes)
    return partial(_function(choice, target), **attributes) if attributes else _function(choice, target)


def _function(choice: Choice, target: Target) -> Bound:
    """The kernel's function behind its error boundary; one guard where several kernels split a range."""
    guarded = [_Named(kernel, choice.call.title) for kernel in choice.kernels]
    if len(guarded) == 1:
        return guarded[0]
    return _split(choice, guarded, target)


class _Named:
    """A kernel's function; what it raises is told with the kernel's name."""

    __slots__ = ("call", "function", "kernel")

    def __init__(self, kernel: Kernel, call: str) -> None:
        self.kernel, self.call, self.function = kernel, call, kernel.load()

    def __call__(self, *arguments: Any, **attributes: Any) -> Any:
        try:
            return self.function(*arguments, **attributes)
        except HalError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise KernelError(
                f"{self.kernel.id} raised {type(error).__name__}: {error} ({last.name}, line {last.lineno})",
                where=self.call,
                fix=f"exclude it with HAL_OPS='{self.kernel.contract}=!{self.kernel.id}|*' and report it",
            ) from error


def _split(choice: Choice, guarded: list[_Named], target: Target) -> Bound:
    """One guard on the size that the kernels cut."""
    facts = choice.call.facts(target)
    cuts = [(served(named.kernel, facts), named) for named in guarded]
    name = next(name for cut, _ in cuts for name in cut)
    where = next(
        (index, argument.dims.index(name))
        for index, argument in enumerate(ops.get(choice.call.contract).parsed.arguments)
        if argument.dims and name in argument.dims
    )

    def dispatch(*arguments: Any, **attributes: Any) -> Any:
        size = arguments[where[0]].shape[where[1]]
        for cut, named in cuts:
            low, high = cut.get(name, (size, size))
            if low <= size <= high:
                return named(*arguments, **attributes)
        raise ContractError(
            f"{name} is {size}, outside the planned {facts.dims[name]}",
            where=choice.call.title,
            fix="plan a wider range",
        )

    return dispatch
