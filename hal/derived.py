"""What follows from an object and is worth computing once: a memo that lives exactly as long as the object does."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from hal.streams import Mark, mark

__all__ = ["derived"]

Made = TypeVar("Made")


def derived(owner: object, key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()`, computed once per `owner` and `key`, and dropped together with `owner`.

    For a tensor of indices that every layer of a step is given (another dtype, another shape), for a weight that a
    vendor's call wants repacked. The owner must not change afterwards. Say in the key whose it is: `("ascend", "nz")`.
    """
    memo: dict[Hashable, tuple[object, Mark | None]] = owner.__dict__.setdefault("_derived", {})
    if key not in memo:
        made = make()
        memo[key] = made, mark()
    value, ready = memo[key]
    if ready is not None:
        ready.wait()
    return cast("Made", value)
