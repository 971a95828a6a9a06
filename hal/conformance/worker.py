"""A worker process per kernel, seen from outside: whatever happens inside has a name here.

The process that asks imports neither torch nor a backend.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import Any, Self

from hal import environment
from hal.conformance.inside import Asked, Found, serve
from hal.conformance.result import CRASHED, Result
from hal.errors import Broken, HalError

__all__ = ["LIMIT", "Worker"]

LIMIT = 120.0
"""Seconds that one case, or loading a backend, may take."""

PRELOADED = ("torch", "hal.conformance.cases")


class Worker:
    """Runs cases of kernels of `backend` whose ids fit `kernel`, in a process of its own that may die.

    `setup` is a `module:function` that is called there first.
    """

    inside = "hal.conformance.inside:Cases"
    kept: tuple[str, ...] = ()
    """The variables of hal that reach the worker. None: every kernel is verified, whatever HAL_OPS prefers."""

    def __init__(self, backend: str, kernel: str = "*", limit: float = LIMIT, setup: str = "") -> None:
        self.backend, self.kernel, self.limit, self.setup = backend, kernel, limit, setup
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def list(self, quick: bool = False) -> Found:
        """The backend's target and its kernels with their cases.

        Raises:
            Broken: the backend hung, crashed or ended the process.
            HalError: what it said itself.
        """
        answer = self.ask(("list", quick))
        if isinstance(answer, str):
            fix = "repair or uninstall it"
            raise Broken(f"listing its kernels {answer}", where=self.backend, fix=fix)
        if isinstance(answer, HalError):
            raise answer
        found: Found = answer
        return found

    def run(self, name: str) -> Result:
        """Run one case; a process that dies of it is replaced at the next one."""
        answer = self.ask(("run", name))
        if isinstance(answer, str):
            return Result(name, CRASHED, answer)
        if isinstance(answer, HalError):
            return Result(name, CRASHED, f"{type(answer).__name__}: {answer}")
        result: Result = answer
        return result

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(1)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self._process = self._connection = None

    def ask(self, request: tuple[str, Any]) -> Any:
        """The answer; or, in words, how the process ended without one."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send(request)
            if not self._connection.poll(self.limit):
                self._process.kill()
                self.close()
                return f"hung: no answer within {self.limit:g} seconds"
            answer, last = self._connection.recv()
        except (EOFError, ConnectionError):
            return self._ended()
        if last:
            self.close()
        return answer

    def _start(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(list(PRELOADED))
        self._connection, theirs = context.Pipe()
        asked = Asked(self.backend, _environment(self.kept), self.kernel, self.setup, self.inside)
        self._process = context.Process(target=serve, args=(theirs, asked), daemon=True)
        self._process.start()
        theirs.close()

    def _ended(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        self.close()
        if code is not None and code < 0:
            return f"crashed: {signal.Signals(-code).name}"
        return f"exited: the process ended with code {code}"


def _environment(kept: tuple[str, ...]) -> dict[str, str]:
    """This process's, without the user's words on selection apart from those that are `kept`."""
    environment.read()
    dropped = environment.VARIABLES.keys() - set(kept)
    return {name: value for name, value in os.environ.items() if name not in dropped}
