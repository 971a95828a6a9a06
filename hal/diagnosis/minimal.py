"""Delta debugging: the smallest part of a set that still fails, with a test for any part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def minimal(items: Sequence[Item], fails: Callable[[tuple[Item, ...]], bool]) -> tuple[Item, ...]:
    """A part of `items`, in their order, that fails and is 1-minimal: without any one of its members it does not.

    The algorithm ddmin of Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE Transactions
    on Software Engineering 28(2), 2002: halves, then quarters and what is left without each, and so on. A lone culprit
    takes about two tests per halving; the worst case is quadratic.

    Args:
        items: known to fail together, while the empty set does not.
        fails: asked once per set of items; may say no where it cannot tell, then less is found out.
    """
    told: dict[tuple[Item, ...], bool] = {}

    def ask(part: tuple[Item, ...]) -> bool:
        if part not in told:
            told[part] = fails(part)
        return told[part]

    kept, pieces = tuple(items), 2
    while len(kept) > 1:
        cut = list(_cut(kept, pieces))
        failing = next((piece for piece in cut if ask(piece)), None)
        if failing:
            kept, pieces = failing, 2
            continue
        rests = (tuple(item for item in kept if item not in piece) for piece in cut)
        failing = next((rest for rest in rests if ask(rest)), None)
        if failing:
            kept, pieces = failing, max(pieces - 1, 2)
        elif pieces == len(kept):
            break
        else:
            pieces = min(2 * pieces, len(kept))
    return kept


def _cut(items: tuple[Item, ...], pieces: int) -> Iterator[tuple[Item, ...]]:
    """`items` in `pieces` runs of nearly equal lengths, none empty."""
    for number in range(pieces):
        yield items[number * len(items) // pieces : (number + 1) * len(items) // pieces]
