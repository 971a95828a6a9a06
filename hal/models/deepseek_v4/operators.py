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
    numerics = numerics_on(target, config, simulate=simulate, dtype=dtype)
    plan = hal.plan(calls(config, numerics, context=context), target=target, policy=policy)
    return numerics, hal.bind(plan), plan


def numerics_on(
    target: hal.Target, config: DeepseekV4Config, *, simulate: bool | None = None, dtype: str | None = None
) -> Numerics:
    """What is stored and rounded how on a chip: the first layouts that its backend names.

    Args:
        simulate: the official code's simulated quantisation; by default on where the checkpoint is quantised.
        dtype: of activations; by default float32 on CPUs and bfloat16 elsewhere.
    """
    dtype = dtype or ("float32" if target.device_type == "cpu" else "bfloat16")
    simulate = config.quantization is not None if simulate is None else simulate
    if not simulate:
        return Numerics.exact(dtype)
    return Numerics.published(config, dtype, hal.layouts_of(target))
