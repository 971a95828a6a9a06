"""The answer of a judgement, with the one coordinate that explains it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """Whether an output is what its contract says.

    rule: the one that failed, or where everything passed the one that came closest to failing: "shape", "dtype",
        "mask", "bound", "ratio", "bias", "grid", "codes", "selection", "padding", "exact".
    coordinate, got, wanted, bound: the worst element and its allowed error; `ulps` its error in spacings of the dtype.
    margin: the worst of error over bound, ratio over limit and lean over tolerated lean; above 1 means failed.
    ratio, limit: the error's root mean square over the baseline's, and the most it may be.
    sigmas: by how many standard deviations of its noise an element is off beyond the rounding of its storage.
    bias, tolerated, z: mean signed error in standard deviations, the most it may be, how many standard errors it is.
    parts: the verdicts on a call's several outputs.
    """

    passed: bool
    rule: str
    output: str = ""
    coordinate: tuple[int, ...] | None = None
    got: float | None = None
    wanted: float | None = None
    bound: float | None = None
    ulps: float | None = None
    margin: float = 0.0
    ratio: float | None = None
    limit: float | None = None
    sigmas: float | None = None
    bias: float | None = None
    tolerated: float | None = None
    z: float | None = None
    note: str = ""
    parts: tuple[Verdict, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def text(self) -> str:
        """One line for a person."""
        words = [f"{self.output or 'output'}: {'passed' if self.passed else self.rule + ' failed'}"]
        if self.note:
            words.append(self.note)
        if self.coordinate is not None:
            place = f"at {list(self.coordinate)}"
            if self.got is not None and self.wanted is not None:
                place += f" got {self.got:.9g}, wanted {self.wanted:.9g}"
            if self.ulps is not None:
                place += f" ({self.ulps:.3g} ulp)"
            if self.bound is not None:
                place += f", allowed {self.bound:.3g}"
            words.append(place)
        if self.ratio is not None:
            words.append(f"rms {self.ratio:.3g} of baseline")
        if self.z is not None:
            words.append(f"bias z {self.z:+.1f}")
        return "; ".join(words)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, parts: list[Verdict]) -> Verdict:
        """The verdict on a call with several outputs: its worst part, with all parts attached."""
        if not parts:
            return cls(True, "none", note="no output to judge")
        worst = max(parts, key=lambda part: (not part.passed, part.margin))
        words = {name: getattr(worst, name) for name in worst.__dataclass_fields__}
        return cls(**{**words, "parts": tuple(parts)})
