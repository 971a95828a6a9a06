"""The cards of this machine, found through torch_mlu."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

from hal.errors import NoDevice
from hal.target import Target, described

__all__ = ["cards_here"]

CARDS = {"MLU370": "mlu:370", "MLU580": "mlu:590", "MLU590": "mlu:590"}
"""How a card's name begins, and the target that describes it. MLU580 and MLU590 are both of the 500 series."""


def cards_here() -> list[Target]:
    """One target for this machine's cards, which are alike; none where torch_mlu is not installed or finds no card.

    Raises:
        NoDevice: torch_mlu does not import, or the card has no description.
    """
    if find_spec("torch_mlu") is None:
        return []
    try:
        import_module("torch_mlu")
    except (ImportError, OSError, RuntimeError) as error:
        raise NoDevice(
            f"torch_mlu is installed but does not import: {error}",
            where="torch_mlu",
            fix="install the driver and the torch_mlu build that belong to this torch (cnmon shows the driver)",
        ) from error
    import torch

    device = torch.mlu
    if not device.is_available():
        return []
    name = device.get_device_name(0)
    chip = next((target for begin, target in CARDS.items() if name.startswith(begin)), None)
    if chip is None:
        raise NoDevice(
            f"the card {name!r} is not described", where="hal_mlu.target", fix=f"known are {', '.join(CARDS)}"
        )
    known = next(target for target in described() if target.name == chip)
    return [replace(known, present=True)]
