"""The six environment variables. An unknown HAL_* name or value is an error that names the nearest one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches

from hal.errors import BadRule, UnknownName, UnknownVariable

VARIABLES: dict[str, str] = {
    "HAL_BACKEND": "name[:chip][@emulated], auto or reference",
    "HAL_OPS": "opglob=choice|choice;..., choice = [!]kernelglob",
    "HAL_ALLOW": "words of: reference host requantize requantize4 unverified nondeterministic",
    "HAL_TRACE": "plan | calls[:glob] | values[:glob], then [@file]; capture[:glob]@folder",
    "HAL_CHECK": "glob[/N]",
    "HAL_CONFIG": "a TOML file or hal.lock",
}
ALLOW = ("reference", "host", "requantize", "requantize4", "unverified", "nondeterministic")


def read(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The HAL_* variables that are set.

    Raises:
        UnknownVariable: one does not exist.
    """
    environ = os.environ if environ is None else environ
    found = {name: value for name, value in environ.items() if name.startswith("HAL_")}
    for name in found:
        if name not in VARIABLES:
            raise UnknownVariable(f"{name} is not a variable of hal", where="environment", fix=nearest(name, VARIABLES))
    return found


def nearest(word: str, known: object) -> str:
    """`did you mean ...`, or what there is."""
    names = list(known)  # type: ignore[call-overload]
    near = get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"


def allowed(text: str, where: str) -> frozenset[str]:
    """The words of HAL_ALLOW."""
    words = frozenset(word for word in text.replace(",", " ").split() if word)
    for word in words:
        if word not in ALLOW:
            raise UnknownName(f"{word!r} is not a word of HAL_ALLOW", where=where, fix=nearest(word, ALLOW))
    return words


def rules(text: str, where: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """HAL_OPS as pairs of an operator glob and its choices."""
    found = []
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        glob, equals, choices = rule.partition("=")
        if not (glob.strip() and equals and choices.strip()):
            raise BadRule(f"cannot read the rule {rule!r}", where=where, fix="write opglob=kernelglob|kernelglob")
        found.append((glob.strip(), tuple(choice.strip() for choice in choices.split("|"))))
    return tuple(found)
