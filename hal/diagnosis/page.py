"""The parity report as one self-contained HTML page."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hal.diagnosis.contracts import A_WRONG, AGREE, APART, B_WRONG
from hal.diagnosis.drawing import COLORS, distribution, layers
from hal.diagnosis.report import Report
from hal.diagnosis.trajectory import HONEST

__all__ = ["page"]


def page(report: Report) -> str:
    """HTML without scripts and without anything from elsewhere."""
    environment = Environment(
        loader=PackageLoader("hal.diagnosis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["short"] = _short
    names = report.names
    verdicts = {A_WRONG: f"{names[0]} is wrong", B_WRONG: f"{names[1]} is wrong"}
    styles = {AGREE: "agree", APART: "apart"}
    model = report.model
    chart = None
    if model is not None:
        sides = model.sides
        chart = layers([side.errors for side in sides], [side.bounds for side in sides], model.between, names)
    return environment.get_template("page.html.jinja").render(
        report=report,
        colors=COLORS,
        verdicts=verdicts,
        styles=styles,
        pictures={
            one.contract: distribution([side.errors for side in one.sides], names)
            for one in report.contracts
            if any(sum(side.errors) for side in one.sides)
        },
        chart=chart,
        honest=HONEST,
        version=version("hal-accel"),
    )


def _short(value: Any) -> str:
    """A number to three digits; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
