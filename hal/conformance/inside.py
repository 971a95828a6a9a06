"""What runs inside a worker process: a backend is loaded here and nowhere else."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Asked", "Cases", "Found", "serve"]


@dataclass(frozen=True)
class Asked:
    """What a worker is told at its start. `setup` is a `module:function` to call first.

    `inside` is the `module:Class` that answers: made of this, its `answer(word, argument)` gives the answer and
    `upset(word, argument, answer)` says whether that was the last one.
    """

    backend: str
    environment: dict[str, str]
    kernel: str = "*"
    setup: str = ""
    inside: str = "hal.conformance.inside:Cases"


@dataclass(frozen=True)
class Found:
    """The target that a backend has, and its kernels' cases."""

    target: str
    emulated: bool
    kernels: tuple[Any, ...]


def serve(connection: Connection, asked: Asked) -> None:
    """Answer requests, a word and its argument, until the other end is closed.

    An error of hal is answered by itself. Beside each answer stands whether it is the last one: an accelerator that a
    case has upset may answer nothing right after it.
    """
    os.environ.clear()
    os.environ.update(asked.environment)
    from hal.errors import HalError

    if asked.setup:
        _named(asked.setup)()
    inside = _named(asked.inside)(asked)
    while True:
        try:
            word, argument = connection.recv()
        except EOFError:
            return
        try:
            answer = inside.answer(word, argument)
        except HalError as error:
            answer = error
        last = inside.upset(word, argument, answer)
        connection.send((answer, last))
        if last:
            return


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


class Cases:
    """Answers `("list", quick)` with `Found` and `("run", name)` with a `Result`."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._subjects: list[Any] = []
        self._cases: dict[str, Any] = {}

    def answer(self, word: str, argument: Any) -> Any:
        return self.list(argument) if word == "list" else self.run(argument)

    def subjects(self) -> list[Any]:
        from hal.conformance.cases import subjects

        self._subjects = self._subjects or subjects(self.asked.backend, self.asked.kernel)
        return self._subjects

    def upset(self, word: str, name: Any, answer: Any) -> bool:
        """Whether the device may be in no state for another case."""
        if word != "run" or self.subjects()[0].target.device_type == "cpu":
            return False
        return getattr(answer, "status", "") != "passed" or "/hidden/" in name

    def list(self, quick: bool) -> Found:
        from hal import ops
        from hal.conformance.cases import cases_of
        from hal.conformance.result import Listed

        found = []
        for subject in self.subjects():
            kernel = subject.kernel
            names = tuple(case.name for case in cases_of(kernel, subject.target, quick))
            version = ops.get(kernel.contract).version
            found.append(Listed(kernel.id, kernel.contract, kernel.version, version, names))
        target = self.subjects()[0].target
        return Found(target.name, target.emulated, tuple(found))

    def run(self, name: str) -> Any:
        from hal.conformance.cases import cases_of
        from hal.conformance.result import FAILED, PASSED, Result
        from hal.conformance.trial import Wrong
        from hal.errors import UnknownName

        if not self._cases:
            self._cases = {
                case.name: (case, subject)
                for subject in self.subjects()
                for case in cases_of(subject.kernel, subject.target)
            }
        if name not in self._cases:
            raise UnknownName(f"no case is called {name!r}", where=self.asked.backend, fix="see `hal verify`")
        begun = time.perf_counter()
        case, subject = self._cases[name]
        try:
            margin = case.run(subject)
        except Wrong as wrong:
            return Result(name, FAILED, str(wrong), time.perf_counter() - begun)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            return Result(name, FAILED, f"suite: {text}", time.perf_counter() - begun)
        return Result(name, PASSED, "", time.perf_counter() - begun, margin)
