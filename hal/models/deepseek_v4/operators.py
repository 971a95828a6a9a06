"""Plans and binds the operators of a model: the one place where it meets a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hal
from hal.models.deepseek_v4.calls import Numerics, calls
from hal.models.deepseek_v4.config import DeepseekV4Config


def bound(
    config: DeepseekV4Config, *, backend: str | None, dtype: str | None, simulate: bool, context: int | None
) -> tuple[Numerics, Mapping[str, Any], hal.Plan]:
    """Numerics, operators by name, and the plan that chose them. Arguments as in `DeepseekV4.from_checkpoint`.

    Raises:
        PlanError: the chip cannot run the model; every blocker is listed.
    """
    policy = hal.Policy.current(backend=backend)
    target = hal.target_of(policy)
    dtype = dtype or ("float32" if target.device_type == "cpu" else "bfloat16")
    layouts = hal.layouts_of(target)
    numerics = Numerics.published(config, dtype, layouts) if simulate else Numerics.exact(dtype)
    plan = hal.plan(calls(config, numerics, context=context), target=target, policy=policy)
    return numerics, hal.bind(plan), plan
