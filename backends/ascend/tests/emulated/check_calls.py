"""Every operator call of this backend on one chip: taken by Huawei's wrappers, faked, and refused when wrong."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_npu
from hal_ascend import cube
from hal_emulators.cann.calls import accepting
from torch._subclasses.fake_tensor import FakeTensorMode

CHIP = os.environ["EMULATED_CHIP"]
MX = CHIP == "a5"
ROOT = Path(__file__).parents[4]
T, H, N, E, K = 6, 256, 128, 8, 2
E8M0 = torch_npu.float8_e8m0fnu


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*shape, device="npu").to(dtype)


def route(**words: Any) -> Any:
    given = {"bias": ones(E), "norm_type": 2, "routed_scaling_factor": 2.5, "eps": 1e-20} | words
    return torch_npu.npu_moe_gating_top_k(ones(T, E), K, **given)


def init_routing(**words: Any) -> Any:
    given = {
        "active_num": T * K,
        "expert_num": E + 1,
        "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True,
        "quant_mode": -1,
        "active_expert_range": [0, E],
        "row_idx_type": 0,
    }
    ids = torch.zeros(T, K, dtype=torch.int32, device="npu")
    return torch_npu.npu_moe_init_routing_v2(ones(T, H, dtype=torch.bfloat16), ids, **given | words)


def finalize() -> Any:
    rows = ones(T * K, H, dtype=torch.bfloat16)
    index = torch.zeros(T * K, dtype=torch.int32, device="npu")
    skip, scales = ones(T, H, dtype=torch.bfloat16), ones(T, K, dtype=torch.bfloat16)
    return torch_npu.npu_moe_finalize_routing(rows, skip, None, None, scales, index, None, drop_pad_mode=2, k=K)


def int8_matmul(**words: Any) -> Any:
    x, weight = ones(T, H, dtype=torch.int8), ones(N, H, dtype=torch.int8)
    given = {"scale": ones(N), "pertoken_scale": ones(T), "output_dtype": torch.bfloat16} | words
    return torch_npu.npu_quant_matmul(x, given.pop("weight", weight.t()), **given)


def int8_grouped(**words: Any) -> Any:
    given = {"group_list": ones(E, dtype=torch.int64), "group_list_type": 1, "output_dtype": torch.bfloat16}
    given |= {"scale": [ones(E, N)], "per_token_scale": [ones(E)], "split_item": 2, "group_type": 0} | words
    weight = given.pop("weight", ones(E, N, H, dtype=torch.int8).transpose(1, 2))
    return torch_npu.npu_grouped_matmul([ones(E, H, dtype=torch.int8)], [weight], **given)


def int4_matmul(**words: Any) -> Any:
    given = {"scale": ones(1, N, dtype=torch.int64), "offset": ones(N), "pertoken_scale": ones(T, 1)}
    given |= {"output_dtype": torch.bfloat16, "group_sizes": [0, 0, 256]} | words
    weight = given.pop("weight", ones(H, N // 8, dtype=torch.int32))
    return torch_npu.npu_quant_matmul(ones(T, H, dtype=torch.int8), weight, **given)


def int4_grouped(**words: Any) -> Any:
    given = {"bias": [ones(E, N)], "scale": [ones(E, 1, N, dtype=torch.int64)], "output_dtype": torch.float16}
    return int8_grouped(**{"weight": ones(E, H, N // 8, dtype=torch.int32), **given, **words})


def swiglu(**words: Any) -> Any:
    given = {"weight": [cube.fractions(ones(E, 2 * N, H, dtype=torch.int8))], "weight_scale": [ones(E, 2 * N)]}
    given |= {"x_scale": ones(E), "group_list": ones(E, dtype=torch.int64), "group_list_type": 1, "swiglu_limit": 2.0}
    return torch.ops._C_ascend.grouped_matmul_swiglu_quant_v2(ones(E, H, dtype=torch.int8), **given | words)


def swiglu_without_limit(**words: Any) -> Any:
    given = {"weight": [cube.fractions(ones(E, 2 * N, H, dtype=torch.int8))], "weight_scale": [ones(E, 2 * N)]}
    given |= {"x_scale": ones(E), "group_list": ones(E, dtype=torch.int64), "group_list_type": 1} | words
    return torch_npu.npu_grouped_matmul_swiglu_quant_v2(ones(E, H, dtype=torch.int8), **given)


def unpermute(**words: Any) -> Any:
    place = torch.arange(T * K, dtype=torch.int32, device="npu")
    given = {"sorted_indices": place, "probs": ones(T, K)} | words
    return torch_npu.npu_moe_token_unpermute(ones(T * K, H, dtype=torch.bfloat16), **given)


def scales(*rows: int) -> torch.Tensor:
    return torch.full((*rows, H // 64, 2), 127, dtype=torch.uint8, device="npu").view(torch.float8_e8m0fnu)


def mx_quant(**words: Any) -> Any:
    given = {"dst_type": torch.float8_e4m3fn, "block_size": 128, "scale_alg": 1, "max_low_bound": 1e-4} | words
    return torch_npu.npu_dynamic_mx_quant(ones(T, H, dtype=torch.bfloat16), **given)


def mx_matmul(**words: Any) -> Any:
    given = {
        "scale": scales(N).transpose(0, 1),
        "pertoken_scale": scales(T),
        "output_dtype": torch.bfloat16,
        "scale_dtype": E8M0,
        "pertoken_scale_dtype": E8M0,
        "group_sizes": [1, 1, 32],
    }
    e4m3 = torch.float8_e4m3fn
    return torch_npu.npu_quant_matmul(ones(T, H, dtype=e4m3), ones(N, H, dtype=e4m3).t(), **given | words)


def hif8_matmul(**words: Any) -> Any:
    given = {"antiquant_scale": ones(1, N, dtype=torch.bfloat16), "weight_dtype": torch_npu.hifloat8} | words
    weight = given.pop("weight", ones(N, H, dtype=torch.uint8).t())
    return torch_npu.npu_weight_quant_batchmatmul(ones(T, H, dtype=torch.bfloat16), weight, **given)


def mx_grouped(fp4: bool) -> Any:
    if fp4:
        weight = ones(E, N, H // 2, dtype=torch.uint8).transpose(1, 2)
        words = {"antiquant_scale": [scales(E, N).transpose(1, 2)]}
        words["weight_dtype"] = torch_npu.float4_e2m1fn_x2
    else:
        weight = ones(E, N, H, dtype=torch.float8_e4m3fn).transpose(1, 2)
        words = {"scale": [scales(E, N).transpose(1, 2)], "scale_dtype": E8M0, "per_token_scale_dtype": E8M0}
    return torch_npu.npu_grouped_matmul(
        [ones(E, H, dtype=torch.float8_e4m3fn)],
        [weight],
        per_token_scale=[scales(E)],
        group_list=ones(E, dtype=torch.int64),
        split_item=2,
        group_type=0,
        group_list_type=1,
        output_dtype=torch.bfloat16,
        **words,
    )


def attend(pages: torch.Tensor) -> Any:
    operator = "npu_kv_quant_sparse_attn_sharedkv" if MX else "npu_sparse_attn_sharedkv"
    words = {"kv_quant_mode": 1, "tile_size": 64, "rope_head_dim": 64} if MX else {}
    table, lengths = torch.zeros(1, 1, dtype=torch.int32, device="npu"), torch.tensor([0, T]).int().npu()
    return getattr(torch.ops._C_ascend, operator)(
        ones(T, 64, 512, dtype=torch.bfloat16),
        ori_kv=pages,
        ori_block_table=table,
        cu_seqlens_q=lengths,
        seqused_kv=lengths[1:],
        metadata=ones(1024, dtype=torch.int32),
        softmax_scale=1.0,
        ori_win_left=127,
        layout_q="TND",
        **words,
    )


def hc_pre(**words: Any) -> Any:
    given = {"fn": ones(24, 4 * 4096), "scale": ones(3), "base": ones(24), "streams": 4} | words
    x = ones(T, 4, 4096, dtype=torch.bfloat16)
    return torch.ops._C_ascend.npu_hc_pre_v2(x, *given.values(), 20, 1e-6, 1e-6)


def hc_post(**words: Any) -> Any:
    given = {"post": ones(1, T, 4), "comb": ones(1, T, 4, 4)} | words
    y, streams = ones(1, T, 4096, dtype=torch.bfloat16), ones(1, T, 4, 4096, dtype=torch.bfloat16)
    return torch.ops._C_ascend.npu_hc_post(y, streams, *given.values())


CALLS: dict[str, Callable[[], Any]] = {
    "npu_moe_gating_top_k": route,
    "npu_moe_gating_top_k by table": lambda: route(
        bias=None, input_ids=ones(T, dtype=torch.int64), tid2eid=ones(9, K, dtype=torch.int32)
    ),
    "npu_moe_init_routing_v2": init_routing,
    "npu_moe_init_routing_v2 to int8": lambda: init_routing(quant_mode=1),
    "npu_moe_finalize_routing": finalize,
    "npu_dynamic_quant": lambda: torch_npu.npu_dynamic_quant(ones(T, H, dtype=torch.bfloat16)),
    "npu_moe_token_permute": lambda: torch_npu.npu_moe_token_permute(ones(T, H), ones(T, K, dtype=torch.int32)),
    "npu_moe_token_unpermute": unpermute,
    "npu_quant_matmul of int8": int8_matmul,
    "npu_grouped_matmul of int8": int8_grouped,
    "npu_grouped_matmul to int32": lambda: int8_grouped(scale=None, per_token_scale=None, output_dtype=torch.int32),
}
if MX:
    CALLS |= {
        "npu_dynamic_mx_quant": mx_quant,
        "npu_quant_matmul of e4m3": mx_matmul,
        "npu_weight_quant_batchmatmul of hif8": hif8_matmul,
        "npu_grouped_matmul of e4m3": lambda: mx_grouped(fp4=False),
        "npu_grouped_matmul of fp4": lambda: mx_grouped(fp4=True),
    }
else:
    CALLS |= {"npu_quant_matmul of int4": int4_matmul, "npu_grouped_matmul of int4": int4_grouped}


EXCHANGE = {"group_ep": "of the test", "ep_world_size": 4, "ep_rank_id": 1, "moe_expert_num": 4 * E}


def sent_out() -> Any:
    mask = ones(T, K, dtype=torch.bool)
    rows, ids = ones(T, 1024, dtype=torch.bfloat16), ones(T, K, dtype=torch.int32)
    words = {**EXCHANGE, "x_active_mask": mask, "expert_token_nums_type": 1}
    rows, _, *others, _ = torch_npu.npu_moe_distribute_dispatch_v2(rows, ids, **words)  # scales are of int8 alone
    return rows, *others


def sent_back() -> Any:
    rows, _, assist, _, received, other = torch_npu.npu_moe_distribute_dispatch_v2(
        ones(T, 1024, dtype=torch.bfloat16), ones(T, K, dtype=torch.int32), **EXCHANGE
    )[:6]
    words = {**EXCHANGE, "tp_send_counts": other, "shared_expert_x": ones(T, 1024, dtype=torch.bfloat16)}
    weights, mask = ones(T, K), ones(T, K, dtype=torch.bool)
    ids = ones(T, K, dtype=torch.int32)
    return torch_npu.npu_moe_distribute_combine_v2(rows, ids, assist, received, weights, x_active_mask=mask, **words)


CALLS |= {"rows to other processes": sent_out, "rows from other processes": sent_back}


def shapes(made: Any) -> list[tuple[Any, ...]]:
    made = made if isinstance(made, (tuple, list)) else [made]
    return [(*each.shape, each.dtype) for each in made]


TAKEN = CALLS | ({} if MX else {"npu_grouped_matmul_swiglu_quant_v2": swiglu_without_limit})
"""With those whose weights torch_npu prepares by a call that it cannot fake: see check_fake.py."""


@pytest.mark.parametrize("call", TAKEN.values(), ids=TAKEN)
def test_huaweis_wrapper_takes_it(call: Callable[[], Any]) -> None:
    with accepting() as names:
        made = call()
    assert [name for name in names if name not in ("aclnnInplaceCopy", "aclnnCast")]
    assert shapes(made)


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors_have_the_shapes_of_real_ones(name: str) -> None:
    with accepting():
        real = shapes(CALLS[name]())
    with FakeTensorMode():
        assert shapes(CALLS[name]()) == real


WRONG: dict[str, Callable[[], Any]] = {
    "scale of integers": lambda: int8_matmul(scale=ones(N, dtype=torch.int32)),
    "weight not transposed": lambda: int8_matmul(weight=ones(N, H, dtype=torch.int8)),
    "experts' scales of integers": lambda: int8_grouped(scale=[ones(E, N, dtype=torch.int32)]),
    "running sums taken for counts": lambda: int8_grouped(group_list=torch.arange(1, E + 1).npu()),
    "experts' weights not transposed": lambda: int8_grouped(weight=ones(E, N, H, dtype=torch.int8)),
    "an expert beyond the last": lambda: init_routing(expert_num=0),
    "more experts than there are": lambda: torch_npu.npu_moe_gating_top_k(ones(T, E), E + 1, norm_type=2),
}
WRONG |= {
    "a transposed projection": lambda: hc_pre(fn=ones(4 * 4096, 24)),
    "a projection of another type": lambda: hc_pre(fn=ones(24, 4 * 4096, dtype=torch.bfloat16)),
    "a mix without its batch": lambda: hc_post(comb=ones(T, 4, 4)),
    "a mix of another type": lambda: hc_post(comb=ones(1, T, 4, 4, dtype=torch.bfloat16)),
}
WRONG |= {
    "an id below zero": lambda: torch_npu.npu_moe_token_permute(ones(T, H), torch.full((T, K), -1).int().npu()),
    "a way back twice": lambda: unpermute(sorted_indices=ones(T * K, dtype=torch.int32)),
    "gated weights in rows": lambda: swiglu(weight=[ones(E, H, 2 * N, dtype=torch.int8)]),
    "gated weights' scales of integers": lambda: swiglu(weight_scale=[ones(E, 2 * N, dtype=torch.int32)]),
    "gated weights' scales in columns": lambda: swiglu(weight_scale=[ones(E, 2 * N, 1)]),
    "gated rows' scales in columns": lambda: swiglu(x_scale=ones(E, 1)),
    "gated groups of another type": lambda: swiglu(group_list=ones(E, dtype=torch.int32)),
    "gated groups of keys": lambda: swiglu(group_list_type=2),
    "gated rows smoothed": lambda: swiglu(smooth_scale=ones(E, N)),
    "a limit below zero": lambda: swiglu(swiglu_limit=-1.0),
}
WRONG["pages of another layout"] = lambda: attend(ones(4, 16, 1, 576, dtype=torch.float32))
if MX:
    WRONG["blocks of 48"] = lambda: mx_quant(block_size=48)
    WRONG["a floor for scales that are rounded down"] = lambda: mx_quant(scale_alg=0)
    WRONG["ue8m0 scales with groups of 64"] = lambda: mx_matmul(group_sizes=[1, 1, 64])
    WRONG["float32 scales where ue8m0 is said"] = lambda: mx_matmul(scale=ones(H // 64, N, 2))
    WRONG["ue8m0 scales of another transposition"] = lambda: mx_matmul(scale=scales(N))
    WRONG["hif8 scales of another type"] = lambda: hif8_matmul(antiquant_scale=ones(1, N))
    WRONG["a hif8 weight not transposed"] = lambda: hif8_matmul(weight=ones(N, H, dtype=torch.uint8))
else:
    WRONG |= {
        "unlimited weights in rows": lambda: swiglu_without_limit(weight=[ones(E, H, 2 * N, dtype=torch.int8)]),
        "unlimited weights' scales of integers": lambda: swiglu_without_limit(weight_scale=[ones(E, 2 * N).int()]),
        "unlimited rows' scales of bfloat16": lambda: swiglu_without_limit(x_scale=ones(E, dtype=torch.bfloat16)),
        "running sums of unlimited groups": lambda: swiglu_without_limit(
            group_list_type=0, group_list=ones(E + 1).long()
        ),
        "int4 scales of float32": lambda: int4_matmul(scale=ones(1, N)),
        "int4 without the weights' sums": lambda: int4_matmul(offset=None),
        "int4 in groups of 128": lambda: int4_matmul(group_sizes=[0, 0, 128], scale=ones(2, N, dtype=torch.int64)),
        "an int4 weight transposed": lambda: int4_matmul(weight=ones(N, H // 8, dtype=torch.int32)),
        "int4 experts' scales of float32": lambda: int4_grouped(scale=[ones(E, 1, N)]),
        "int4 experts without the weights' sums": lambda: int4_grouped(bias=None),
        "the weights' sums in bfloat16": lambda: int4_grouped(bias=[ones(E, N, dtype=torch.bfloat16)]),
        "int4 experts transposed": lambda: int4_grouped(weight=ones(E, N, H // 8, dtype=torch.int32)),
        "int4 experts to float32": lambda: int4_grouped(output_dtype=torch.float32),
    }


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError):
        call()


def test_hyper_connections_take_the_right_calls() -> None:
    assert [tuple(each.shape) for each in hc_pre()] == [(T, 4096), (T, 4), (T, 4, 4)]
    assert hc_post().shape == (1, T, 4, 4096)
