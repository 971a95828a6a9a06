"""`hal ops`: contracts, and which installed backend has kernels for them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from rich.table import Table
from rich.text import Text

from hal.cli.output import Json, show, table


def command(json: Json = False) -> None:
    """List contracts and the kernels that each installed backend declares for them, with the tier of each."""
    from hal import ops, plugins
    from hal.errors import HalError

    kernels: dict[str, dict[str, list[dict[str, str]]]] = {}
    for backend in plugins.installed():
        try:
            kernels[backend] = _kernels(plugins.load(backend))
        except HalError:
            continue  # `hal backends` says why
    kernels["reference"] = {
        name: [{"id": f"reference.{name.split('.')[1]}", "tier": "defines"}] for name in ops.CONTRACTS
    }
    rows = [
        {
            "contract": contract.name,
            "version": contract.version,
            "signature": contract.signature,
            "doc": contract.doc,
            "numerics": contract.numerics,
            "parts": list(contract.parts),
            "portable": contract.portable,
            "kernels": {backend: found.get(contract.name, []) for backend, found in kernels.items()},
        }
        for contract in ops.CONTRACTS.values()
    ]
    show(rows, json, lambda: _table(rows, list(kernels)))


def _kernels(loaded: Any) -> dict[str, list[dict[str, str]]]:
    """Kernels by contract, over all chips that the backend finds or describes; the best tier that each has on one."""
    from hal import evidence
    from hal.target import described

    backend = loaded.backend.name
    records = evidence.of_backend(backend)
    reached: dict[tuple[str, str], set[str]] = {}
    for target in loaded.targets() or [chip for chip in described() if chip.backend == backend]:
        for kernel in loaded.kernels(target):
            reached.setdefault((kernel.contract, kernel.id), set()).add(evidence.tier(kernel, target, records))
    found: dict[str, list[dict[str, str]]] = {}
    for (contract, name), tiers in reached.items():
        best = max(tiers - {"declared", "failed"}, key=evidence.TIERS.index, default=max(tiers))
        found.setdefault(contract, []).append({"id": name, "tier": best})
    return found


def _table(rows: list[dict[str, Any]], backends: list[str]) -> Table:
    made = table("contract", "meaning", *backends)
    for row in rows:
        name = Text(row["contract"]) + Text(f" v{row['version']}", style="dim")
        cells = [_cell(row["kernels"][backend], row["portable"]) for backend in backends]
        made.add_row(name, Text(re.split(r"\.\s+(?=[A-Z])", row["doc"])[0].rstrip("."), style="dim"), *cells)
    return made


def _cell(kernels: list[dict[str, str]], portable: bool) -> Text:
    """`2 declared, 1 verified`; a dash where there is none, or the reference that serves; it defines what right is."""
    if not kernels and portable:
        return Text("reference", style="dim")
    if [kernel["tier"] for kernel in kernels] == ["defines"]:
        return Text("defines", style="dim")
    tiers = Counter(kernel["tier"] for kernel in kernels)
    return Text(", ".join(f"{count} {tier}" for tier, count in tiers.items()) or "–")
