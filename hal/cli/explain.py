"""`hal explain`: what an operator means, which kernel serves a call of it, and why each other one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from hal.cli.output import Json, show, table
from hal.errors import ConfigError

if TYPE_CHECKING:
    from hal.contract import Contract
    from hal.planning import Call, Choice
    from hal.signature import Signature

TYPES: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda word: {"true": True, "false": False}[word.lower()],
}
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "int32", "int64")
"""Values that are an argument's dtype; any other value is its layout or scheme."""


def command(
    op: Annotated[str, typer.Argument(help="A contract, as `hal ops` lists them: attn.attend.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="heads=64 tokens=0..8192 q=bfloat16 window=v4_584 ratio=4"),
    ] = None,
    on: Annotated[str | None, typer.Option(help="A chip, here or not. Default: HAL_BACKEND.")] = None,
    model: Annotated[str | None, typer.Option(help="Explain this model's calls of the operator instead.")] = None,
    json: Json = False,
) -> None:
    """Explain an operator: its meaning, and for a call (sizes, layouts, dtypes, attributes) who serves it and why."""
    from hal import ops
    from hal.errors import PlanError
    from hal.feasibility import target_named
    from hal.planning import plan
    from hal.policy import Policy
    from hal.selection import target_of

    contract = ops.get(op)
    policy = Policy.current()
    target = target_named(on) if on else target_of(policy)
    calls = _of_model(model, op, target) if model else [parse(contract, words or [])]
    answers: list[dict[str, Any]] = []
    for call in calls:
        try:
            answers.append(_answer(plan([call], target=target, policy=policy).choices[0]))
        except PlanError as error:
            answers.append({"call": call.title, "contract": op, "kernels": [], "blockers": list(error.blockers)})
    data = {
        "contract": op,
        "version": contract.version,
        "signature": contract.signature,
        "doc": contract.doc,
        "edges": dict(contract.edges),
        "target": target.name,
        "calls": answers,
    }
    show(data, json, lambda: _view(data))


def parse(contract: Contract, words: Iterable[str]) -> Call:
    """A call from `name=value` words: a dimension's size or `low..high`, an attribute, a layout, or a dtype.

    Raises:
        ConfigError: a word that cannot be read, or a name that the signature does not have.
    """
    from hal.environment import nearest
    from hal.planning import Call

    signature = contract.parsed
    tensors = {argument.name for argument in (*signature.arguments, *signature.returns)}
    known = {*signature.dims, *signature.attributes, *tensors}
    call = Call(contract.name, None, {}, {}, {}, {}, {})
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise ConfigError(f"{contract.name} has no {name!r}", where="hal explain", fix=nearest(name, known))
        try:
            _put(call, signature, name, value)
        except (ValueError, KeyError):
            raise ConfigError(
                f"cannot read {word!r}", where="hal explain", fix="write name=value, or name=low..high for a range"
            ) from None
    return call


def _put(call: Any, signature: Signature, name: str, value: str) -> None:
    """One word; a name may be a dimension and an attribute at once, as `ratio` of `attn.compress`."""
    if name in signature.attributes:
        call.attributes[name] = TYPES[signature.attributes[name]](value)
    if name in signature.dims and ".." in value:
        low, _, high = value.partition("..")
        call.ranges[name] = (int(low), int(high))
    elif name in signature.dims:
        call.sizes[name] = int(value)
    elif name not in signature.attributes:
        if not value:
            raise ValueError
        (call.dtypes if value in DTYPES else call.layouts)[name] = value


def _of_model(model: str, op: str, target: Any) -> list[Call]:
    from hal.feasibility import numerics_on
    from hal.models.deepseek_v4.calls import calls
    from hal.models.deepseek_v4.config_reader import load

    config = load(model)
    found = [call for call in calls(config, numerics_on(target, config)) if call.contract == op]
    if not found:
        raise ConfigError(
            f"{model} makes no call of {op} itself", where="--model", fix="explain the composite it is in"
        )
    return found


def _answer(choice: Choice) -> dict[str, Any]:
    return {
        "call": choice.call.title,
        "contract": choice.call.contract,
        "kernels": [kernel.id for kernel in choice.kernels],
        "notes": [kernel.notes for kernel in choice.kernels if kernel.notes],
        "lost": [{"kernel": lost.kernel, "reason": lost.reason} for lost in choice.lost],
        "parts": [_answer(part) for part in choice.parts],
        "blockers": [],
    }


def _view(data: dict[str, Any]) -> RenderableType:
    edges = table("edge", "what happens")
    for title, sentence in data["edges"].items():
        edges.add_row(title, Text(sentence))
    return Group(
        Text.assemble((data["contract"], "bold"), f" v{data['version']}: {data['doc']}\n"),
        Text(data["signature"], style="cyan"),
        edges,
        *(_tree(answer, data["target"]) for answer in data["calls"]),
    )


def _tree(answer: dict[str, Any], target: str = "") -> Tree:
    """A call, the kernels that serve it or the parts it falls into, and why others lost."""
    served = " | ".join(answer["kernels"])
    state = (served, "green") if served else ("blocked", "red") if answer["blockers"] else ("by its parts", "yellow")
    label = Text.assemble((answer["call"], "bold"), f" on {target}: " if target else ": ", state)
    tree = Tree(label)
    for note in answer.get("notes", ()):
        tree.add(Text(note, style="dim"))
    for lost in answer.get("lost", ()):
        tree.add(Text.assemble((lost["kernel"], "red"), f" lost: {lost['reason']}"))
    for part in answer.get("parts", ()):
        tree.add(_tree(part))
    for blocker in answer["blockers"]:
        tree.add(Text(blocker, style="red"))
    return tree
