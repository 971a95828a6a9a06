"""hal.lock: the decisions of a plan in a file, so that a run elsewhere or later makes the same ones or says why not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hal.errors import ConfigError, Drift

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = 1
HEAD = "# Written by hal, read with HAL_CONFIG. Write it again after a change that is meant.\n"


@dataclass(frozen=True)
class Lock:
    """The chip, and per call of a plan the kernels and versions that serve it."""

    target: str
    calls: Mapping[str, str]

    def write(self, path: str | Path) -> None:
        """Write a TOML file."""
        lines = [f"{_text(title)} = {_text(decision)}\n" for title, decision in self.calls.items()]
        head = f"{HEAD}format = {FORMAT}\ntarget = {_text(self.target)}\n\n[calls]\n"
        Path(path).write_text(head + "".join(lines), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Lock:
        """Read what `write` wrote.

        Raises:
            ConfigError: the file is not there, or is not a lock of this format.
        """
        fix = "write it again with `hal plan MODEL --lock FILE`"
        try:
            words = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"this lock cannot be read: {error}", where=str(path), fix=fix) from error
        calls, target = words.get("calls"), words.get("target")
        sound = isinstance(calls, dict) and all(isinstance(word, str) for word in calls.values())
        if words.get("format") != FORMAT or not isinstance(target, str) or not sound:
            raise ConfigError(f"this is not a lock of format {FORMAT}", where=str(path), fix=fix)
        return cls(target, words["calls"])

    def check(self, made: Lock, where: str) -> None:
        """Compare a plan's decisions with the kept ones.

        Raises:
            Drift: another chip, a call that is not kept, or another kernel or version; every difference is listed.
        """
        differences = [] if made.target == self.target else [f"the chip is {made.target}, locked is {self.target}"]
        for title, decision in made.calls.items():
            kept = self.calls.get(title)
            if kept is None:
                differences.append(f"{title} is not in the lock")
            elif kept != decision:
                differences.append(f"{title} is served by {decision}, locked is {kept}")
        if differences:
            raise Drift(
                "; ".join(differences),
                where=where,
                fix="restore what changed, or write the lock again",
                blockers=tuple(differences),
            )


def _text(word: str) -> str:
    """A TOML basic string."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
