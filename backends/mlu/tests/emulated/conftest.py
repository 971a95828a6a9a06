import pytest
from hal_emulators.mlu import start

from hal.target import Target

TARGET = start("")


@pytest.fixture
def target() -> Target:
    return TARGET
