"""One run of a user's command with some variables of hal changed: how it ended, and what hal traced in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hal.errors import ConfigError


@dataclass(frozen=True)
class Ended:
    """A run that is over. `code` is negative for a signal and None at the time limit; `trace` has HAL_TRACE's lines."""

    code: int | None
    stdout: bytes
    stderr: str
    seconds: float
    trace: tuple[Mapping[str, Any], ...]

    @property
    def says(self) -> str:
        """How it ended, in words."""
        if self.code is None:
            return f"stopped after {self.seconds:.3g} s"
        if self.code < 0:
            with suppress(ValueError):
                return f"died of {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class Command:
    """What to run, and the seconds that one run may take (None: any)."""

    words: Sequence[str]
    limit: float | None = None

    def run(self, variables: Mapping[str, str], trace: str = "plan") -> Ended:
        """Run it in this directory and environment, with `variables` and HAL_TRACE=`trace` on top.

        Raises:
            ConfigError: there is no such program.
        """
        with TemporaryDirectory(prefix="hal-") as folder:
            file = Path(folder, "trace.jsonl")
            began = time.perf_counter()
            code, stdout, stderr = self._end({**os.environ, **variables, "HAL_TRACE": f"{trace}@{file}"})
            seconds = time.perf_counter() - began
            lines = tuple(_lines(file.read_text(encoding="utf-8"))) if file.exists() else ()
        return Ended(code, stdout, stderr.decode(errors="replace"), seconds, lines)

    def _end(self, environ: Mapping[str, str]) -> tuple[int | None, bytes, bytes]:
        """Exit code, stdout, stderr. All that it started ends with it."""
        try:
            process = subprocess.Popen(
                self.words,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot run {self.words[0]!r}: {error.strerror}", where="COMMAND", fix="write it as in a shell"
            ) from error
        with process:
            try:
                stdout, stderr = process.communicate(timeout=self.limit)
                return process.returncode, stdout, stderr
            except subprocess.TimeoutExpired:
                _end_group(process)
                stdout, stderr = process.communicate()
                return None, stdout, stderr
            except BaseException:
                _end_group(process)
                raise


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(text: str) -> Iterator[Mapping[str, Any]]:
    """JSON lines; one that a dying process cut short is left out."""
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
