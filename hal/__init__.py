"""hal: one DeepSeek-V4 source on many chips. Importing it imports neither torch nor a backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.batch import Batch as Batch
    from hal.binding import bind as bind
    from hal.cache import KVCache as KVCache
    from hal.cache import StateCache as StateCache
    from hal.contract import Contract as Contract
    from hal.errors import HalError as HalError
    from hal.formats import PackedWeight as PackedWeight
    from hal.formats import prepare as prepare
    from hal.kernel import Kernel as Kernel
    from hal.layouts import layout as layout
    from hal.planning import Call as Call
    from hal.planning import Plan as Plan
    from hal.planning import plan as plan
    from hal.policy import Policy as Policy
    from hal.policy import use as use
    from hal.rope import Rope as Rope
    from hal.rope import rotate as rotate
    from hal.selection import layouts_of as layouts_of
    from hal.selection import target_of as target_of
    from hal.streams import overlap as overlap
    from hal.target import Backend as Backend
    from hal.target import Target as Target

_WHERE = {
    "Call": "hal.planning", "Plan": "hal.planning", "plan": "hal.planning", "bind": "hal.binding", "use": "hal.policy",
    "Policy": "hal.policy", "Contract": "hal.contract", "Kernel": "hal.kernel", "Target": "hal.target",
    "Backend": "hal.target", "HalError": "hal.errors", "Batch": "hal.batch", "KVCache": "hal.cache",
    "StateCache": "hal.cache", "Rope": "hal.rope", "rotate": "hal.rope", "PackedWeight": "hal.formats",
    "target_of": "hal.selection", "layouts_of": "hal.selection", "prepare": "hal.formats", "layout": "hal.layouts",
    "overlap": "hal.streams",
}  # fmt: skip
"""Public name -> the module that has it. No module is called as a public name is."""

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'hal' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
