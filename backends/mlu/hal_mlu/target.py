"""The cards of this machine, found through torch_mlu, and what to do where something of the vendor's is not right."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

from hal.errors import NoDevice
from hal.target import Target, described

__all__ = ["advice", "cards_here"]

CARDS = {"MLU370": "mlu:370", "MLU580": "mlu:590", "MLU590": "mlu:590"}
"""How a card's name begins, and the target that describes it. MLU580 and MLU590 are both of the 500 series."""

OFF = ("0", "off", "false", "no")


def cards_here() -> list[Target]:
    """One target for this machine's cards, which are alike; none where torch_mlu is not installed.

    Raises:
        NoDevice: torch_mlu does not import or finds no card, or the card has no description.
    """
    if find_spec("torch_mlu") is None:
        return []
    try:
        import_module("torch_mlu")
    except (ImportError, OSError, RuntimeError) as error:
        raise NoDevice(
            f"torch_mlu is installed but does not import: {error}",
            where="torch_mlu",
            fix="install the driver and the torch_mlu build that belong to this torch; cnmon shows the driver",
        ) from error
    import torch

    if not torch.mlu.is_available():
        raise NoDevice(
            "torch_mlu finds no card: the driver is not loaded or of another release, or MLU_VISIBLE_DEVICES hides it",
            where="torch.mlu.is_available()",
            fix="run cnmon; if it lists the card, install the driver release that torch_mlu was built for",
        )
    name = torch.mlu.get_device_name(0)
    chip = next((target for begin, target in CARDS.items() if name.startswith(begin)), None)
    if chip is None:
        raise NoDevice(
            f"the card {name!r} is not described", where="hal_mlu.target", fix=f"known are {', '.join(CARDS)}"
        )
    known = next(target for target in described() if target.name == chip)
    return [replace(known, present=True, facts={**known.facts, "advice": advice()})]


def advice() -> tuple[str, ...]:
    """What works less well than it could with the vendor packages of this environment, and the one thing to do."""
    from hal_mlu import tmo
    from hal_mlu.kernels import operators

    said = []
    if not tmo.installed():
        said.append(
            "torch_mlu_ops does not import, so plain torch serves every contract: install the torch_mlu_ops build "
            "that belongs to this torch_mlu"
        )
    elif missing := [name for name in operators() if not tmo.offered(name)]:
        said.append(f"torch_mlu_ops {tmo.version()} lacks {', '.join(missing)}: install 1.12.1 or newer")
    if os.environ.get("ENABLE_FALLBACK_TO_CPU", "on").lower() not in OFF:
        said.append(
            "torch_mlu runs operators without a kernel on the host and only warns: export ENABLE_FALLBACK_TO_CPU=OFF"
        )
    return tuple(said)
