"""What `hal parity` found, and the sentence that answers the question."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hal.diagnosis.contracts import A_WRONG, AGREE, APART, B_WRONG, BOTH_WRONG, Parity
from hal.diagnosis.side import Told
from hal.diagnosis.trajectory import Trajectory

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Two backends, compared.

    Attributes:
        names: as they were asked for.
        quick: only the largest sample of each kind was run.
        model: a whole model on both, where one was asked for.
    """

    names: tuple[str, str]
    told: tuple[Told, Told]
    contracts: tuple[Parity, ...]
    quick: bool = False
    model: Trajectory | None = None

    @property
    def agrees(self) -> bool:
        """Nothing that ran was wrong, and something ran on both."""
        ran = self.model is not None or any(one.verdict == AGREE for one in self.contracts)
        return ran and not self.wrong and (self.model is None or self.model.agrees)

    @property
    def wrong(self) -> list[Parity]:
        """Contracts in which a side is wrong."""
        return [one for one in self.contracts if one.verdict not in (AGREE, APART)]

    @property
    def answer(self) -> str:
        """Whether they compute the same, and if not, who is wrong in what."""
        said = [self._operators] if self.contracts else []
        if self.model is not None:
            said.append(self.model.answer)
        return " ".join(said)

    @property
    def _operators(self) -> str:
        if self.wrong:
            return " ".join(self._blamed(side) for side in (0, 1) if self._guilty(side))
        agreed = [one for one in self.contracts if one.verdict == AGREE]
        a, b = self.names
        if not agreed:
            return f"{a} and {b} cannot be compared: no sample is served by both."
        both = sum(one.both for one in agreed)
        every = sum(one.samples for one in self.contracts)
        worst = max(side.margin for one in agreed for side in one.sides)
        words = f"{a} and {b} agree on {_count(len(agreed), 'operator')}: {both} of {every} samples ran on both, and "
        words += f"the worst error is {worst:.2g} of what is allowed."
        apart = [one.contract for one in self.contracts if one.verdict == APART]
        return words + (f" Not comparable: {', '.join(apart)}." if apart else "")

    def _guilty(self, side: int) -> list[Parity]:
        verdicts = (BOTH_WRONG, (A_WRONG, B_WRONG)[side])
        return [one for one in self.contracts if one.verdict in verdicts]

    def _blamed(self, side: int) -> str:
        guilty = [f"{one.contract} ({', '.join(one.sides[side].guilty)})" for one in self._guilty(side)]
        return f"{self.names[side]} is wrong in {', '.join(guilty)}."

    def data(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite are words."""
        a, b = (
            {"asked": name, "target": told.target, "emulated": told.emulated, "allow": list(told.allow)}
            for name, told in zip(self.names, self.told, strict=True)
        )
        contracts = [{**asdict(one), "verdict": one.verdict} for one in self.contracts]
        whole = {"answer": self.answer, "agrees": self.agrees, "quick": self.quick, "a": a, "b": b}
        model = None if self.model is None else {"answer": self.model.answer, **asdict(self.model)}
        plain: dict[str, Any] = _plain({**whole, "contracts": contracts, "model": model})
        return plain


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
