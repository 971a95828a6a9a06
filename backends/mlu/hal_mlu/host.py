"""Operators that torch_mlu runs on the host, as its warnings name them (`ENABLE_FALLBACK_TO_CPU` is on by default)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["watched"]

FALLBACK = re.compile(r"operator '([^']+)'.*fall.* CPU", re.DOTALL | re.IGNORECASE)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Gives a list that has the name of every operator which ran on the host, once the block has ended."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for warning in caught:
        said = FALLBACK.search(str(warning.message))
        if said:
            found.append(said[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
