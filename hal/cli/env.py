"""`hal env`: the environment variables, their values, and where each value came from."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, show, table


def command(json: Json = False) -> None:
    """List the six variables with their values and origins; an unknown HAL_* variable is an error."""
    from hal import environment
    from hal.policy import DEFAULTS, Policy

    variables = environment.read()
    policy = Policy.current()
    words = {"backend": policy.backend, "ops": _rules(policy.ops), "allow": " ".join(sorted(policy.allow))}
    rows = []
    for name, grammar in environment.VARIABLES.items():
        setting = name.removeprefix("HAL_").lower()
        if setting in DEFAULTS:
            value, origin = words[setting], policy.origins[setting]
        else:
            value, origin = variables.get(name, ""), name if name in variables else "default"
        rows.append({"variable": name, "value": value, "origin": origin, "grammar": grammar})
    show(rows, json, lambda: _table(rows))


def _rules(rules: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    return ";".join(f"{glob}={'|'.join(choices)}" for glob, choices in rules)


def _table(rows: list[dict[str, str]]) -> Table:
    made = table("variable", "value", "origin", "grammar")
    for row in rows:
        made.add_row(row["variable"], Text(row["value"] or "–"), row["origin"], Text(row["grammar"], style="dim"))
    return made
