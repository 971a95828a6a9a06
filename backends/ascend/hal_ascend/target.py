"""The chips of this machine, found through torch_npu, and what of a computation left them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

from hal.errors import NoDevice
from hal.target import Target, described
from hal_ascend.layouts import CHIPS

__all__ = ["chips_here", "watched"]

FALLEN_BACK = re.compile(r"The operator '([^']+)' is not currently supported on the NPU backend")
"""torch_npu's words when an operator has no kernel and runs on the host."""


def chips_here() -> list[Target]:
    """One target for this machine's chips, which are alike; none where torch_npu is not installed or finds no chip.

    Raises:
        NoDevice: torch or torch_npu does not import, or the chip has no description.
    """
    if find_spec("torch_npu") is None:
        return []
    try:
        import_module("torch")
    except RuntimeError as error:  # torch imports every installed device extension by itself
        raise NoDevice(
            f"torch does not import, because torch_npu does not: {_reason(error)}",
            where="torch",
            fix="source CANN's set_env.sh; without CANN, export TORCH_DEVICE_BACKEND_AUTOLOAD=0",
        ) from error
    try:
        import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        home = os.environ.get("ASCEND_HOME_PATH")
        raise NoDevice(
            f"torch_npu is installed but does not import: {_reason(error)}",
            where=f"ASCEND_HOME_PATH={home}" if home else "ASCEND_HOME_PATH is not set",
            fix="source set_env.sh of the CANN that belongs to this torch_npu; without it a bare `import torch` fails "
            "too, unless TORCH_DEVICE_BACKEND_AUTOLOAD=0",
        ) from error
    import torch

    if not torch.npu.is_available():
        return []
    soc = torch.npu.get_device_name(0)
    for name, chip in CHIPS.items():
        if soc.startswith(chip.soc):
            return [replace(next(target for target in described() if target.name == name), present=True)]
    known = ", ".join(word for chip in CHIPS.values() for word in chip.soc)
    raise NoDevice(f"the chip {soc!r} is not described", where="hal_ascend.layouts", fix=f"known are {known}")


def _reason(error: BaseException) -> str:
    return str(error.__cause__ or error).splitlines()[0]


@contextmanager
def watched() -> Iterator[list[str]]:
    """Gives a list that gets the name of every operator for which the host waited or, at the end, ran it itself.

    torch_npu says each of the latter once per process. Its own `set_sync_debug_mode` sees single values only.
    """
    from hal.host import reads

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with reads() as names:
            yield names
    for warning in said:
        found = FALLEN_BACK.search(str(warning.message))
        if found:
            names.append(found[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
