"""The one-line signature of a contract, parsed once: `name[dims]:dtype`, `?` optional, `!` mutated, `name: Type`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hal.errors import ContractError

_ARGUMENT = re.compile(
    r"(?P<name>\w+)(?P<mutated>!)?(?:\[(?P<dims>[\w ]*)\](?::(?P<dtype>\w+))?|:\s*(?P<type>\w+))?(?P<optional>\?)?$"
)


@dataclass(frozen=True)
class Argument:
    """A tensor with named dimensions (`dims`), or an object of a boundary type (`type`)."""

    name: str
    dims: tuple[str, ...] | None
    dtype: str
    type: str
    optional: bool
    mutated: bool


@dataclass(frozen=True)
class Signature:
    """Arguments in order, attributes with their types, and returns of a contract."""

    text: str
    arguments: tuple[Argument, ...]
    attributes: dict[str, str]
    returns: tuple[Argument, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read a signature.

        Raises:
            ContractError: `text` does not follow the grammar.
        """
        if "->" not in text:
            raise ContractError(f"{text!r} has no '->'", where="signature", fix="write the returns behind '->'")
        inputs, returns = text.split("->")
        tensors, _, attributes = inputs.partition(";")
        pairs = [part.split(":") for part in _split(attributes)]
        return cls(
            text,
            tuple(map(_argument, _split(tensors))),
            {name.strip(): kind.strip() for name, kind in pairs},
            tuple(map(_argument, _split(returns))),
        )

    @property
    def dims(self) -> tuple[str, ...]:
        """Every named dimension, in order of appearance."""
        found = [dim for argument in (*self.arguments, *self.returns) for dim in argument.dims or ()]
        return tuple(dict.fromkeys(found))

    def __str__(self) -> str:
        return self.text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _argument(text: str) -> Argument:
    found = _ARGUMENT.match(text)
    if found is None:
        raise ContractError(f"cannot read the argument {text!r}", where="signature", fix="write name[dims]:dtype")
    dims = found["dims"]
    return Argument(
        found["name"],
        None if dims is None else tuple(dims.split()),
        found["dtype"] or "",
        found["type"] or "",
        bool(found["optional"]),
        bool(found["mutated"]),
    )
