"""Huawei's functions for fake tensors against its own C++, which decides: every call that the adapters make, and those
calls near them in which the two are known to disagree."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from hal_ascend.offers import CANN
from hal_emulators.cann.calls import accepting
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hal.conformance.cases import cases_of, subjects

CHIP = os.environ["EMULATED_CHIP"]
BF16, INT8, E4M3, E8M0 = torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch_npu.float8_e8m0fnu
T, H, N, E = 16, 256, 128, 8


def facts(made: Any) -> list[Any]:
    """Shapes and dtypes; None for what is not there."""
    made = made if isinstance(made, (tuple, list)) else [made]
    return [None if each is None else (*each.shape, each.dtype) for each in made]


UNFAKED = ("npu_format_cast",)
"""Of weights, when they are prepared: the one call of this backend that torch_npu cannot fake."""


class Faked(TorchDispatchMode):
    """Repeats every call of torch_npu's operators with fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.apart: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        words = kwargs or {}
        made = func(*args, **words)
        if func.namespace == "npu" and func.overloadpacket.__name__ not in UNFAKED:
            self.seen.add(func.overloadpacket.__name__.removeprefix("_"))  # of its public name's own making
            with FakeTensorMode() as mode:
                fake = facts(
                    func(
                        *tree_map_only(Tensor, mode.from_tensor, args), **tree_map_only(Tensor, mode.from_tensor, words)
                    )
                )
            if fake != facts(made):
                self.apart.append(f"{func}: {facts(made)}, but {fake} for fake tensors")
        return made


def test_every_call_of_an_adapter_has_the_shapes_of_fake_tensors() -> None:
    """On the conformance suite's samples, unlike ones of each contract."""
    watch = Faked()
    for subject in subjects(f"ascend:{CHIP}@emulated"):
        if subject.kernel.code.startswith("hal_ascend."):
            for case in cases_of(subject.kernel, subject.target, quick=True):
                if case.kind == "parity":
                    with watch:
                        case.run(subject)
    assert watch.apart == []
    of_a5 = {"npu_dynamic_mx_quant", "npu_weight_quant_batchmatmul"}  # of 8-bit floats
    of_others = {"npu_moe_token_permute", "npu_moe_token_unpermute", "npu_grouped_matmul_swiglu_quant_v2"}
    elsewhere = of_others if CHIP == "a5" else of_a5
    elsewhere |= {name for name in CANN if "distribute" in name}  # between processes: check_hccl.py
    assert {name for name in watch.seen if name in CANN} == set(CANN) - elsewhere


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(*shape, device="npu").to(dtype)


def ue8m0(*shape: int) -> Tensor:
    return torch.full(shape, 127, dtype=torch.uint8, device="npu").view(torch.float8_e8m0fnu)


def grouped_fp4() -> Any:
    return torch_npu.npu_grouped_matmul(
        [ones(E, H, dtype=E4M3)],
        [ones(E, N, H // 2, dtype=torch.uint8).transpose(1, 2)],
        per_token_scale=[ue8m0(E, H // 64, 2)],
        antiquant_scale=[ue8m0(E, N, H // 64, 2).transpose(1, 2)],
        weight_dtype=torch_npu.float4_e2m1fn_x2,
        x_dtype=E4M3,
        group_list=ones(E, dtype=torch.int64),
        split_item=2,
        group_type=0,
        group_list_type=1,
        output_dtype=BF16,
    )


def int4_matmul() -> Any:
    scale = ones(1, N, dtype=torch.int64).view(torch.uint64)
    weight = ones(H, N // 8, dtype=torch.int32)
    words = {"pertoken_scale": ones(T), "output_dtype": BF16, "group_sizes": [0, 0, H]}
    return torch_npu.npu_quant_matmul(ones(T, H, dtype=INT8), weight, scale, **words)


def grouped_swiglu() -> Any:
    return torch_npu.npu_grouped_matmul_swiglu_quant_v2(
        ones(E, H, dtype=E4M3),
        [ones(E, H, 2 * N, dtype=E4M3)],
        [ue8m0(E, H // 64, 2 * N, 2)],
        ue8m0(E, H // 64, 2),
        ones(E, dtype=torch.int64),
        dequant_mode=2,
        quant_mode=2,
        dequant_dtype=torch.float32,
        quant_dtype=E4M3,
        weight_scale_dtype=E8M0,
        x_scale_dtype=E8M0,
        group_list_type=1,
    )


def mhc_pre() -> Any:
    return torch_npu.npu_mhc_pre(ones(T, 4, 4096, dtype=BF16), ones(24, 4 * 4096), ones(3), ones(24))


def add_norm_quant() -> Any:
    rows = ones(T, H, dtype=BF16)
    return torch_npu.npu_add_rms_norm_dynamic_quant(rows, rows, ones(H, dtype=BF16))


def dispatched() -> Any:
    ids = torch.zeros(T, 6, dtype=torch.int32, device="npu")
    words = {"quant_mode": 2, "global_bs": 0, "expert_token_nums_type": 1}
    return torch_npu.npu_moe_distribute_dispatch_v2(ones(T, 4096, dtype=BF16), ids, "group", 2, 0, 16, **words)


APART: dict[str, Callable[[], Any]] = {
    "npu_grouped_matmul with x_dtype and FP4": grouped_fp4,
    "npu_quant_matmul of int4 with a uint64 scale": int4_matmul,
    "npu_grouped_matmul_swiglu_quant_v2 to mxfp8": grouped_swiglu,
    "npu_mhc_pre": mhc_pre,
    "npu_swiglu_group_quant": lambda: torch_npu.npu_swiglu_group_quant(ones(T, 2 * N, dtype=BF16), dst_type=E4M3),
    "npu_format_cast": lambda: torch_npu.npu_format_cast(ones(64, 64, dtype=INT8), 29),
    "npu_add_rms_norm_dynamic_quant": add_norm_quant,
    "npu_rms_norm_dynamic_mx_quant": lambda: torch_npu.npu_rms_norm_dynamic_mx_quant(
        ones(T, H, dtype=BF16), ones(H, dtype=BF16)
    ),
    "npu_moe_distribute_dispatch_v2": dispatched,
}


def tried(call: Callable[[], Any]) -> list[Any] | str:
    """Facts, or how it was refused. Nothing is computed."""
    with accepting():
        try:
            return facts(call())
        except Exception as error:
            return type(error).__name__


@pytest.mark.parametrize("call", APART.values(), ids=APART)
def test_what_torch_npu_disagrees_with_itself_about(call: Callable[[], Any]) -> None:
    """Fails once Huawei has mended it: then take it off the list in docs/backends/ascend.md."""
    real = tried(call)
    with FakeTensorMode():
        fake = tried(call)
    assert real != fake
    assert isinstance(real, list) or isinstance(fake, list)  # one of them takes it


def test_the_fused_experts_have_no_clamp() -> None:
    """Why `moe.experts` is two products and a gate: torch_npu's fused operator cannot say the model's limit."""
    named = [each.name for each in torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2.default._schema.arguments]
    assert "smooth_scale" in named
    assert not [name for name in named if "limit" in name or "clamp" in name]
