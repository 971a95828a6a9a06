from collections.abc import Iterator

import pytest
from hal_emulators import triton as emulator


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Interpret Triton kernels in these tests, and leave torch as it was for the others."""
    emulator.activate("sm90")
    yield
    emulator.deactivate()
