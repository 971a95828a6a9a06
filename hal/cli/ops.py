"""`hal ops`: contracts, and which installed backend has kernels for them."""

from __future__ import annotations

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
    made = table("contract", *backends)
    made.columns[0].no_wrap = True
    made.caption = "What one means, edge by edge: hal explain CONTRACT."
    for row in rows:
        name = Text(row["contract"]) + Text(f" v{row['version']}", style="dim")
        without = "reference" if row["portable"] else "by its parts" if row["parts"] else "–"
        cells = [_cell(row["kernels"][backend], without) for backend in backends]
        made.add_row(name, *cells)
    return made


def _cell(kernels: list[dict[str, str]], without: str) -> Text:
    """`2 declared, 1 verified`; `without` where there is none; the reference defines what right is."""
    tiers = Counter(kernel["tier"] for kernel in kernels)
    if not kernels or list(tiers) == ["defines"]:
        return Text("defines" if kernels else without, style="dim")
    return Text(", ".join(f"{count} {tier}" for tier, count in tiers.items()))
