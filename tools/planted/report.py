"""The tables of docs/numerics.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hal.numerics import DEFAULT
from tools.planted import foreign
from tools.planted.measure import Run

_CONSTANTS: dict[str, tuple[float, ...]] = {
    "noise": (1, 2, 3, 4, 6, 8, 12, 20),
    "ratio": (1.02, 1.1, 1.25, 1.5, 2, 3),
    "bias": (0.02, 0.05, 0.1, 0.2, 0.5, 1),
}


def tables(found: Sequence[Run], seeds: int) -> str:
    parts = [
        f"{len(found):,} runs, {seeds} seed{'s' * (seeds > 1)} per configuration.",
        "### The rule next to others\n\nFloating outputs only; the others do not judge choices.\n\n" + _rivals(found),
        "### By operator\n\n" + _families(found),
        "### The constants\n\n" + _sweeps(found),
        "### Faults by kind\n\n" + _faults(found),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part} / {whole}" + (f" ({part / whole:.1%})" if part and whole else "")


def _rivals(found: Sequence[Run]) -> str:
    compared = [r for r in found if "torch" in r.accepted]
    honest, real = [r for r in compared if r.real is None], [r for r in compared if r.real]
    rows = []
    for rule in ("hal", *foreign.SOURCES):
        rows.append(
            (
                f"**{rule}**" if rule == "hal" else rule,
                _share(sum(r.accepted[rule] for r in real), len(real)),
                _share(sum(not r.accepted[rule] for r in honest), len(honest)),
                _share(sum(r.flipped[rule] for r in honest + real), len(honest + real)),
            )
        )
    header = (
        "rule",
        "faults missed",
        "honest kernels rejected",
        "verdicts that change when data is scaled by 1/64 or 32",
    )
    return _table(header, rows)


def _families(found: Sequence[Run]) -> str:
    def rows(key: Callable[[Run], tuple[str, ...]]) -> Iterable[tuple[object, ...]]:
        for name in dict.fromkeys(key(r) for r in found):
            group = [r for r in found if key(r) == name]
            planted = [r for r in group if r.real is not None]
            real, honest = [r for r in planted if r.real], [r for r in group if r.real is None]
            yield (
                " ".join(name),
                len(planted),
                len(planted) - len(real),
                sum(r.accepted["hal"] for r in real),
                len(honest),
                sum(not r.accepted["hal"] for r in honest),
                sum(r.flipped.get("hal", False) for r in honest + real),
            )

    header = (
        "operator",
        "faults planted",
        "below rounding",
        "missed",
        "honest kernels",
        "rejected",
        "unstable under scaling",
    )
    grouped = sorted(rows(lambda r: (r.family, r.name)), key=lambda row: str(row[0]))
    return _table(header, grouped)


def _sweeps(found: Sequence[Run]) -> str:
    """What other constants would have done, one at a time."""
    real, honest = [r for r in found if r.real], [r for r in found if r.real is None]
    rows = []
    for name, values in _CONSTANTS.items():
        for value in values:
            missed = sum(_accepts(r, name, value) for r in real)
            rejected = sum(not _accepts(r, name, value) for r in honest)
            own = value == getattr(DEFAULT, name)
            rows.append((f"{name} = **{value:g}**" if own else f"{name} = {value:g}", missed, rejected))
    return _table(("constant", "faults missed", "honest kernels rejected"), rows)


def _accepts(r: Run, name: str, value: float) -> bool:
    """Whether the judge would accept `r` with one constant changed. Only floating outputs depend on it."""
    for v in r.verdicts:
        if (
            v.sigmas is None
            or v.z is None
            or v.bias is None
            or v.tolerated is None
            or v.ratio is None
            or v.limit is None
        ):
            if not v:
                return False
            continue
        rules = {"noise": DEFAULT.noise, "ratio": DEFAULT.ratio, "bias": DEFAULT.bias, name: value}
        within = v.sigmas <= rules["noise"] and v.ratio <= v.limit * rules["ratio"] / DEFAULT.ratio
        if not within or (abs(v.z) > DEFAULT.z and abs(v.bias) > v.tolerated + rules["bias"] - DEFAULT.bias):
            return False
    return True


def _faults(found: Sequence[Run]) -> str:
    planted = [r for r in found if r.real is not None]
    rows = []
    for family, kernel in sorted({(r.family, r.kernel) for r in planted}):
        group = [r for r in planted if (r.family, r.kernel) == (family, kernel)]
        real = [r for r in group if r.real]
        missed = sum(r.accepted["hal"] for r in real)
        by = {rule: sum(r.accepted.get(rule, False) for r in real) for rule in foreign.SOURCES}
        others = [by[rule] if any(rule in r.accepted for r in real) else "-" for rule in foreign.SOURCES]
        rows.append((f"{family}: {kernel}", len(group), len(real), missed, *others))
    header = ("fault", "planted", "above rounding", "missed by hal", *(f"by {rule}" for rule in foreign.SOURCES))
    return _table(header, rows)
