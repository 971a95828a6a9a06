"""Whether an operator can be called here: torch_npu has it, and the CANN below has a kernel of it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from hal.constraints import Constraint, Facts, Reason
from hal.target import Target

__all__ = ["installed", "offers"]

CANN = {
    "npu_dynamic_mx_quant": ("aclnnDynamicMxQuantV3",),
    "npu_dynamic_quant": ("aclnnDynamicQuantV2",),
    "npu_grouped_matmul": ("aclnnGroupedMatmulV4", "aclnnGroupedMatmulV5"),
    "npu_grouped_matmul_swiglu_quant_v2": ("aclnnGroupedMatmulSwigluQuantWeightNzV2",),
    "npu_moe_distribute_combine_v2": ("aclnnMoeDistributeCombineV3", "aclnnMoeDistributeCombineV4"),
    "npu_moe_distribute_dispatch_v2": ("aclnnMoeDistributeDispatchV3", "aclnnMoeDistributeDispatchV4"),
    "npu_moe_finalize_routing": ("aclnnMoeFinalizeRoutingV2", "aclnnMoeFinalizeRoutingV4"),
    "npu_moe_gating_top_k": ("aclnnMoeGatingTopK",),
    "npu_moe_init_routing_v2": ("aclnnMoeInitRoutingV3",),
    "npu_moe_token_permute": ("aclnnMoeTokenPermute",),
    "npu_moe_token_unpermute": ("aclnnMoeTokenUnpermute",),
    "npu_quant_matmul": ("aclnnQuantMatmulV4", "aclnnQuantMatmulV5"),
    "npu_weight_quant_batchmatmul": ("aclnnWeightQuantBatchMatmulV2",),
}
"""torch_npu's operator -> the kernels of CANN's operator library that serve it; any one of them will do."""

VLLM = "vllm_ascend"
"""The package that brings the operators of `torch.ops._C_ascend`."""


@dataclass(frozen=True)
class Installed(Constraint):
    """Something is installed that calls cannot change. `lacking` says what is not."""

    lacking: str = ""

    def reason(self, facts: Facts) -> Reason | None:
        """Why nothing can be served, or None."""
        return Reason(self.name, self.wanted, self.lacking) if self.lacking else None


def installed(name: str, wanted: str, *, lacking: str) -> Installed:
    """`name` is here unless something is `lacking`."""
    return Installed("library", name, wanted, lambda value: True, lacking=lacking)


def offers(target: Target, *operators: str) -> list[Constraint]:
    """The operators, if any, are here; taken for granted on a chip that is only described."""
    if not operators:
        return []
    missing = [each for each in operators if target.present and not _here(each)]
    name = "torch_npu" if operators[0] in CANN else VLLM
    wanted = f"{', '.join(operators)} in torch_npu and CANN" if operators[0] in CANN else f"{operators[0]} of {VLLM}"
    return [installed(name, wanted, lacking=f"without {', '.join(missing)}" if missing else "")]


@cache
def _here(operator: str) -> bool:
    if find_spec("torch_npu") is None:
        return False
    import torch

    if operator not in CANN:
        if find_spec(VLLM) is not None:
            __import__(f"{VLLM}.{VLLM}_C")
        return hasattr(torch.ops._C_ascend, operator)
    import torch_npu  # noqa: F401

    try:
        library = ctypes.CDLL("libopapi.so")
    except OSError:
        return False
    return hasattr(torch.ops.npu, operator) and any(hasattr(library, name) for name in CANN[operator])
