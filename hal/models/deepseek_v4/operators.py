"""Plans the model's operator calls for the chip that the user's policy names, and binds them."""

from __future__ import annotations

import hal
from hal.models.deepseek_v4.calls import Numerics, calls
from hal.models.deepseek_v4.config import DeepseekV4Config
from hal.models.deepseek_v4.layers import Operators


def bound(
    config: DeepseekV4Config,
    *,
    simulate: bool,
    backend: str | None = None,
    dtype: str | None = None,
    context: int | None = None,
) -> tuple[Numerics, Operators, hal.Plan]:
    """The model's numerics on the chip, its operators by name, and the plan that chose them.

    Raises:
        ConfigError, BackendError: the policy cannot be followed.
        PlanError: the chip cannot serve a call; every blocker is listed.
    """
    policy = hal.Policy.current(backend=backend)
    target = hal.target_of(policy)
    layouts = hal.layouts_of(target)
    if dtype is None and target.emulated:
        dtype = "bfloat16"  # of the chip, also where its tensors are the host's
    numerics = Numerics.on(config, target.device_type, layouts, simulate=simulate, dtype=dtype, allow=policy.allow)
    plan = hal.plan(calls(config, numerics, context=context), target=target, policy=policy)
    return numerics, hal.bind(plan), plan
