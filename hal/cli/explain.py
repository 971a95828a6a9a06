"""`hal explain`: what an operator means, which kernel serves a call of it, and why each other one does not."""

from __future__ import annotations

from collections.abc import Iterable
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

TYPES = {"int": int, "float": float, "str": str, "bool": lambda word: {"true": True, "false": False}[word.lower()]}
HELD = ("Cache", "Weight")
"""Types of arguments that are given by layout or scheme; other arguments are given by dtype."""


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
    arguments = {argument.name: argument for argument in signature.arguments}
    sizes: dict[str, int] = {}
    ranges: dict[str, tuple[int, int]] = {}
    attributes: dict[str, Any] = {}
    layouts: dict[str, str] = {}
    dtypes: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            if not equals:
                raise ValueError
            if name in signature.attributes:
                attributes[name] = TYPES[signature.attributes[name]](value)
            elif name in arguments and not arguments[name].dims:
                layouts[name] = value
            elif name in arguments:
                dtypes[name] = value
            elif name in signature.dims and ".." in value:
                low, _, high = value.partition("..")
                ranges[name] = (int(low), int(high))
            elif name in signature.dims:
                sizes[name] = int(value)
            else:
                known = [*signature.dims, *signature.attributes, *arguments]
                raise ConfigError(f"{contract.name} has no {name!r}", where="hal explain", fix=nearest(name, known))
        except (ValueError, KeyError):
            raise ConfigError(
                f"cannot read {word!r}", where="hal explain", fix="write name=value, or name=low..high for a range"
            ) from None
    return Call(contract.name, None, sizes, ranges, dtypes, layouts, attributes)


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
