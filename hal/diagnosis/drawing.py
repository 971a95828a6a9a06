"""Pictures of a parity report, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from hal.diagnosis.errors import EDGES

__all__ = ["distribution", "layers"]

COLORS = ("#2563eb", "#d97706")
WIDTH = 640


def distribution(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Elements by size of error: one side's bars point up, the other's down, heights grow with the logarithm."""
    half, left, bottom = 70, 8, 34
    bar = (WIDTH - 2 * left) / len(counts[0])
    tallest = max(1.0, *(math.log10(1 + n) for side in counts for n in side))
    body = []
    for side, (numbers, color) in enumerate(zip(counts, COLORS, strict=True)):
        for place, number in enumerate(numbers):
            height = half * math.log10(1 + number) / tallest
            top = half - height if side == 0 else half
            body.append(
                f'<rect x="{left + place * bar + 1:.1f}" y="{top:.1f}" width="{bar - 2:.1f}" height="{height:.1f}" '
                f'fill="{color}"><title>{escape(names[side])}: {number} elements {_bin(place)}</title></rect>'
            )
    body.append(f'<line class="axis" x1="{left}" x2="{WIDTH - left}" y1="{half}" y2="{half}"/>')
    allowed = left + (EDGES.index(1.0) + 1) * bar
    body.append(f'<line class="bound" x1="{allowed:.1f}" x2="{allowed:.1f}" y1="0" y2="{2 * half}"/>')
    for place, edge in enumerate(EDGES):
        if place % 4 == 0:
            text = "allowed" if edge == 1 else f"{edge:g}"
            body.append(f'<text x="{left + (place + 1) * bar:.1f}" y="{2 * half + 16}">{text}</text>')
    return _svg(body, 2 * half + bottom, "distribution of errors")


def layers(
    errors: Sequence[Sequence[float]], bounds: Sequence[Sequence[float]], between: Sequence[float], names: Sequence[str]
) -> Markup:
    """Errors of hidden states after every layer as points, bounds as steps, on a logarithmic scale."""
    height, left, bottom = 240, 60, 24
    found = [x for row in (*errors, *bounds, between) for x in row if 0 < x < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)) + 1e-9)
    high = max(high, low + 1)
    step = (WIDTH - left - 8) / len(between)

    def y(value: float) -> float:
        at = high if value == math.inf else low if value <= 0 else math.log10(value)
        return 8 + (height - 16) * (high - at) / (high - low)

    body = []
    for power in range(low, high + 1):
        at = y(10.0**power)
        body.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(f'<text class="scale" x="{left - 6}" y="{at + 4:.1f}">1e{power}</text>')
    for side, color in enumerate(COLORS):
        for layer, (error, bound) in enumerate(zip(errors[side], bounds[side], strict=True)):
            at = left + layer * step
            name = f"{escape(names[side])}, layer {layer}"
            body.append(
                f'<line x1="{at + 2:.1f}" x2="{at + step - 2:.1f}" y1="{y(bound):.1f}" y2="{y(bound):.1f}" '
                f'stroke="{color}" stroke-dasharray="5 3"><title>{name}: {bound:.3g} allowed</title></line>'
            )
            place = at + step * (0.35 + 0.3 * side)
            outside = not error <= bound
            kind = ' class="outside"' if outside else ""
            body.append(
                f'<circle cx="{place:.1f}" cy="{y(error):.1f}" r="{6 if outside else 4}" fill="{color}"'
                f"{kind}><title>{name}: {error:.3g}</title></circle>"
            )
    every = max(1, len(between) // 16)
    for layer in range(0, len(between), every):
        body.append(f'<text x="{left + (layer + 0.5) * step:.1f}" y="{height + 12}">{layer}</text>')
    return _svg(body, height + bottom, "errors of hidden states after every layer")


def _bin(place: int) -> str:
    if place == 0:
        return f"below {EDGES[0]:g} of what is allowed"
    if place == len(EDGES):
        return f"above {EDGES[-1]:g} times what is allowed"
    return f"from {EDGES[place - 1]:.2g} to {EDGES[place]:.2g} of what is allowed"


def _svg(body: Sequence[str], height: float, what: str) -> Markup:
    inside = "".join(body)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{what}">{inside}</svg>')
