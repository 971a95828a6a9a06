"""Delta debugging over plain sets: what it finds fails, no member can be left out, and it does not ask too often."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.diagnosis.minimal import minimal

Part = tuple[int, ...]


def asked(fails: Callable[[Part], bool]) -> tuple[Callable[[Part], bool], list[Part]]:
    """The same question, and the list of what was asked."""
    parts: list[Part] = []

    def ask(part: Part) -> bool:
        parts.append(part)
        return fails(part)

    return ask, parts


def check(items: Part, fails: Callable[[Part], bool]) -> Part:
    ask, parts = asked(fails)
    found = minimal(items, ask)
    assert fails(found)
    assert len(found) == 1 or not any(fails(tuple(i for i in found if i != item)) for item in found)
    assert list(found) == [item for item in items if item in found]
    assert len(parts) == len(set(parts)) <= len(items) ** 2 + 3 * len(items)
    assert () not in parts
    return found


@st.composite
def families(draw: st.DrawFn) -> tuple[Part, list[set[int]]]:
    """Some items, and sets of them that are guilty together."""
    size = draw(st.integers(1, 14))
    guilty = st.sets(st.integers(0, size - 1), min_size=1)
    return tuple(range(size)), draw(st.lists(guilty, min_size=1, max_size=4))


@given(families())
def test_a_monotone_failure_gives_one_of_its_minimal_sets(family: tuple[Part, list[set[int]]]) -> None:
    items, guilty = family
    found = check(items, lambda part: any(group <= set(part) for group in guilty))
    assert set(found) in [group for group in guilty if not any(other < group for other in guilty)]


@given(st.integers(1, 10), st.data())
def test_any_failure_gives_a_set_that_cannot_lose_a_member(size: int, data: st.DataObject) -> None:
    """Also one that heals when more is added."""
    items, known = tuple(range(size)), {tuple(range(size)): True, (): False}

    def fails(part: Part) -> bool:
        if part not in known:
            known[part] = data.draw(st.booleans())
        return known[part]

    check(items, fails)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 64])
def test_one_culprit_takes_two_runs_per_halving(size: int) -> None:
    for culprit in range(size):
        ask, parts = asked(lambda part, culprit=culprit: culprit in part)  # type: ignore[misc]
        assert minimal(range(size), ask) == (culprit,)
        assert len(parts) <= 2 * ceil(log2(size))
