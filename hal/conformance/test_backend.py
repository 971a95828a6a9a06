"""One test per case of the backend that `--hal-backend` names; see `hal.conformance.plugin`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest

from hal.conformance.plugin import PROPERTY
from hal.conformance.result import EXPECTED, Result


def test_case(
    hal_case: str, hal_verify: Callable[[str], Result], record_property: Callable[[str, object], None]
) -> None:
    result = hal_verify(hal_case)
    record_property(PROPERTY, asdict(result))
    if result.status == EXPECTED:
        pytest.xfail(result.text)
    if not result.good:
        pytest.fail(f"{result.status}: {result.text}", pytrace=False)
