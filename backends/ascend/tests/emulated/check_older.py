"""A CANN without some operators: their kernels say so, and others serve the calls."""

import hal
from hal.plugins import load
from hal.policy import Policy
from hal.selection import target_of


def test_kernels_that_lack_an_operator_are_refused() -> None:
    with hal.use(backend="ascend:a3@emulated", allow="unverified"):
        call = hal.Call(
            "moe.route", sizes={"experts": 16}, attributes={"top_k": 4, "scoring": "sqrtsoftplus", "scale": 1.0}
        )
        plan = hal.plan([call])
        assert [kernel.id for kernel in plan.choices[0].kernels] == ["ascend.route.torch"]
        assert "npu_moe_gating_top_k in torch_npu and CANN" in str(plan.choices[0].lost)


def test_the_others_stay() -> None:
    with hal.use(backend="ascend:a3@emulated"):
        target = target_of(Policy.current())
    assert "ascend.dispatch" in [kernel.id for kernel in load("ascend").kernels(target)]
