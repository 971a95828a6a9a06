from collections.abc import Iterator

import pytest

emulator = pytest.importorskip("hal_emulators.triton")


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Interpret Triton kernels in these tests, checked, and leave torch as it was for the others."""
    emulator.activate("sm90")
    yield
    emulator.deactivate()
