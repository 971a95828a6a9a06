"""Calls that a vendor would refuse, or that read the wrong memory, are refused by the stand-in."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_mlu_ops as tmo
from hal_emulators.mlu.ops import products

D = "mlu"


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=D).bfloat16()


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=D)


def attention() -> dict[str, Any]:
    return {
        "q": bf16(2, 1, 4, 64),
        "k_cache": bf16(10, 1, 1, 64),
        "v_cache": None,
        "out": torch.empty(2, 1, 4, 64, dtype=torch.bfloat16, device=D),
        "block_tables": ints(0, 1, 2, 3, 4, 5).view(2, 3),
        "context_lens": ints(3, 2),
        "k_cache_quant_scale": None,
        "v_cache_quant_scale": None,
        "alibi_slopes": None,
        "max_context_len": 3,
        "windows_size_left": -1,
        "windows_size_right": -1,
        "softmax_scale": 0.125,
        "out_dtype": torch.bfloat16,
    }


def fused() -> dict[str, Any]:
    return {
        "q": bf16(2, 4, 64),
        "cache_swa": bf16(10, 1, 1, 64),
        "cache_comp": bf16(8, 1, 1, 64),
        "out": torch.empty(2, 4, 64, dtype=torch.bfloat16, device=D),
        "block_tables_swa": ints(0, 1, 2, 9).view(2, 2),
        "block_tables_comp": ints(0, 7).view(2, 1),
        "cu_seq_q": ints(0, 1, 2),
        "context_lens_swa": ints(2, 1),
        "context_lens_comp": ints(1, 0),
        "q_quant_scale": None,
        "cache_quant_scale_swa": None,
        "cache_quant_scale_comp": None,
        "out_quant_scale": None,
        "sink": torch.zeros(4, device=D),
        "softmax_scale": 0.125,
        "max_contxt_len_swa": 2,
        "max_contxt_len_comp": 1,
        "out_dtype": torch.bfloat16,
    }


def indexer() -> dict[str, Any]:
    return {
        "query": bf16(2, 1, 32, 128),
        "k_cache": bf16(3, 1, 4, 128),
        "weights": torch.randn(2, 1, 32, 1, device=D),
        "kv_cache_block_table": torch.arange(8, dtype=torch.int32, device=D).expand(2, 8).contiguous(),
        "cu_seq_q_lens": None,
        "cu_seq_k_lens": None,
        "k_context_lens": ints(32, 17),
        "k_cache_block_table": ints(0, 1, 2, 0).view(2, 2),
        "is_prefill": False,
        "index_topk": 4,
        "kv_cache_block_size": 1,
        "softmax_scale": 1.0,
        "compress_ratio": 4,
    }


def compressor() -> dict[str, Any]:
    return {
        "kv": torch.randn(5, 256, device=D),
        "score": torch.randn(5, 256, device=D),
        "state_cache": torch.zeros(2, 8, 512, device=D),
        "state_block_table": ints(1).view(1, 1),
        "cu_seqlens": ints(0, 5),
        "positions": ints(0, 1, 2, 3, 4),
        "ape": torch.zeros(4, 256, device=D),
        "max_seqlen": 5,
        "overlap": True,
        "compressed_kv": torch.empty(1, 128, device=D),
    }


def decoder() -> dict[str, Any]:
    return {
        "kv": torch.randn(2, 256, device=D),
        "score": torch.randn(2, 256, device=D),
        "position": ints(7, 2),
        "ape": torch.zeros(4, 256, device=D),
        "gamma": torch.ones(128, device=D),
        "sin": torch.zeros(8, 64, device=D),
        "cos": torch.ones(8, 64, device=D),
        "hadamard_matrix": None,
        "slot_mapping": ints(1, -1),
        "kv_cache": bf16(2, 4, 128),
        "kv_cache_scale": None,
        "eps": 1e-6,
        "overlap": True,
        "state_cache": torch.zeros(2, 8, 512, device=D),
        "state_bt": ints(1, 0).view(2, 1),
        "state_width": 256,
        "state_block_size": 8,
        "cu_query_len": ints(0, 1, 2),
    }


def product() -> dict[str, Any]:
    return {
        "a": torch.ones(3, 64, dtype=torch.int8, device=D),
        "b": torch.ones(5, 64, dtype=torch.int8, device=D),
        "a_scale": torch.ones(3, device=D),
        "b_scale": torch.ones(5, device=D),
        "output_dtype": torch.bfloat16,
    }


def grouped() -> dict[str, Any]:
    return {
        "a": torch.ones(3, 64, dtype=torch.int8, device=D),
        "b": torch.ones(2, 5, 64, dtype=torch.int8, device=D),
        "m_list": ints(1, 2),
        "expand_idx": None,
        "c": None,
        "alpha": None,
        "beta": None,
        "a_scale": torch.ones(3, device=D),
        "b_scale": torch.ones(2, 5, device=D),
        "dtype": torch.bfloat16,
        "max_m": 3,
    }


def float8() -> dict[str, Any]:
    return {
        "a": torch.ones(3, 256, device=D).to(torch.float8_e4m3fn),
        "b": torch.ones(128, 256, device=D).to(torch.float8_e4m3fn),
        "a_scale": torch.ones(3, 2, device=D),
        "b_scale": torch.ones(1, 2, device=D),
        "output_dtype": torch.bfloat16,
    }


def micro() -> dict[str, Any]:
    return {
        **grouped(),
        "a": torch.ones(3, 64, device=D).to(torch.float8_e4m3fn),
        "b": torch.ones(2, 5, 64, device=D).to(torch.float8_e4m3fn),
        "a_scale": torch.ones(2, 3, device=D).to(torch.float8_e8m0fnu),
        "b_scale": torch.ones(2, 2, 5, device=D).to(torch.float8_e8m0fnu),
    }


def stored() -> dict[str, Any]:
    return {"k": bf16(2, 1, 64), "v": None, "k_cache": bf16(3, 1, 4, 64), "v_cache": None, "slot_mapping": ints(11, -1)}


def routed() -> dict[str, Any]:
    return {"input": torch.randn(3, 8, device=D), "topk": 2, "bias": torch.zeros(8, device=D)}


CALLS = {
    "single_query_cached_kv_attn": attention,
    "sliding_window_compress_attention": fused,
    "masked_indexer_select_paged_kv": indexer,
    "fused_compress_multi_kv": compressor,
    "fused_compress_single_kv": decoder,
    "scaled_matmul": product,
    "smooth_quant_group_gemm": grouped,
    "reshape_paged_cache": stored,
    "moe_softplus_topk": routed,
}


def swapped(one: str, other: str) -> Any:
    return lambda words: words.update({one: words[other], other: words[one]})


def changed(name: str, change: Any) -> Any:
    return lambda words: words.update({name: change(words[name])})


PLANTED = {
    "cache and query swapped": ("single_query_cached_kv_attn", swapped("q", "k_cache")),
    "int64 block table": ("single_query_cached_kv_attn", changed("block_tables", torch.Tensor.long)),
    "block table on the host": ("single_query_cached_kv_attn", changed("block_tables", torch.Tensor.cpu)),
    "row that is not there": ("single_query_cached_kv_attn", changed("block_tables", lambda t: t + 6)),
    "missing row of a table": ("single_query_cached_kv_attn", changed("block_tables", lambda t: t - 1)),
    "blocks of 128 rows": ("single_query_cached_kv_attn", changed("k_cache", lambda t: bf16(2, 1, 128, 64))),
    "out in another dtype": ("single_query_cached_kv_attn", lambda words: words.pop("out_dtype")),
    "out is the query": ("single_query_cached_kv_attn", lambda words: words.update(out=words["q"])),
    "context longer than said": ("single_query_cached_kv_attn", lambda words: words.update(max_context_len=2)),
    "cache in float32": ("single_query_cached_kv_attn", changed("k_cache", torch.Tensor.float)),
    "old name of the sink": ("single_query_cached_kv_attn", lambda words: words.update(learnable_sink=None)),
    "tables swapped": ("sliding_window_compress_attention", swapped("block_tables_swa", "block_tables_comp")),
    "lengths swapped": ("sliding_window_compress_attention", swapped("context_lens_swa", "context_lens_comp")),
    "sink in bfloat16": ("sliding_window_compress_attention", changed("sink", torch.Tensor.bfloat16)),
    "requests instead of rows": ("sliding_window_compress_attention", changed("cu_seq_q", lambda t: ints(0, 2))),
    "16 heads": ("masked_indexer_select_paged_kv", changed("query", lambda t: t[:, :, :16].contiguous())),
    "strided query": ("masked_indexer_select_paged_kv", changed("query", lambda t: bf16(2, 1, 128, 32).mT)),
    "keys of another layout": ("masked_indexer_select_paged_kv", changed("k_cache", lambda t: t.transpose(1, 2))),
    "lengths of more than is mapped": ("masked_indexer_select_paged_kv", lambda words: words.update(compress_ratio=1)),
    "int64 lengths": ("masked_indexer_select_paged_kv", changed("k_context_lens", torch.Tensor.long)),
    "ratio 8": ("fused_compress_multi_kv", changed("ape", lambda t: torch.zeros(8, 256, device=D))),
    "overlap forgotten": ("fused_compress_multi_kv", lambda words: words.update(overlap=False)),
    "slot that is not there": ("fused_compress_multi_kv", changed("state_block_table", lambda t: t + 1)),
    "state in bfloat16": ("fused_compress_multi_kv", changed("state_cache", torch.Tensor.bfloat16)),
    "one entry too many": (
        "fused_compress_multi_kv",
        changed("compressed_kv", lambda t: torch.empty(2, 128, device=D)),
    ),
    "int64 positions": ("fused_compress_multi_kv", changed("positions", torch.Tensor.long)),
    "two tokens of a request": ("fused_compress_single_kv", changed("cu_query_len", lambda t: ints(0, 2, 2))),
    "width of one half": ("fused_compress_single_kv", lambda words: words.update(state_width=128)),
    "angles end before the position": ("fused_compress_single_kv", changed("sin", lambda t: t[:4].contiguous())),
    "hadamard in float32": (
        "fused_compress_single_kv",
        lambda words: words.update(hadamard_matrix=torch.eye(128, device=D)),
    ),
    "position behind the state's table": ("fused_compress_single_kv", changed("position", lambda t: t + 8)),
    "int64 slots of entries": ("fused_compress_single_kv", changed("slot_mapping", torch.Tensor.long)),
    "missing scale": ("scaled_matmul", lambda words: words.pop("a_scale")),
    "scales swapped": ("scaled_matmul", swapped("a_scale", "b_scale")),
    "scales as columns": ("scaled_matmul", changed("a_scale", lambda t: t.unsqueeze(1))),
    "codes as bytes": ("scaled_matmul", changed("a", lambda t: t.view(torch.uint8))),
    "output in float32": ("scaled_matmul", lambda words: words.update(output_dtype=torch.float32)),
    "unknown keyword": ("scaled_matmul", lambda words: words.update(transpose_b=True)),
    "int64 counts": ("smooth_quant_group_gemm", changed("m_list", torch.Tensor.long)),
    "more rows than there are": ("smooth_quant_group_gemm", changed("m_list", lambda t: t + 1)),
    "largest group understated": ("smooth_quant_group_gemm", lambda words: words.update(max_m=1)),
    "weight transposed": ("smooth_quant_group_gemm", changed("b", torch.Tensor.mT.__get__)),
    "int64 slots": ("reshape_paged_cache", changed("slot_mapping", torch.Tensor.long)),
    "slot behind the cache": ("reshape_paged_cache", changed("slot_mapping", lambda t: t + 1)),
    "pages in another dtype": ("reshape_paged_cache", changed("k_cache", torch.Tensor.half)),
    "table without ids": (
        "moe_softplus_topk",
        lambda words: words.update(tid2eid=torch.zeros(4, 2, dtype=torch.int32, device=D)),
    ),
    "more experts than there are": ("moe_softplus_topk", lambda words: words.update(topk=9)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_right_call_is_taken(name: str) -> None:
    getattr(tmo, name)(**CALLS[name]())


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_caught(name: str) -> None:
    operator, plant = PLANTED[name]
    words = CALLS[operator]()
    plant(words)
    with pytest.raises((RuntimeError, TypeError), match=r"torch_mlu_ops\.|argument"):
        getattr(tmo, operator)(**words)


def test_lengths_after_compression_hide_entries() -> None:
    """They are legal numbers: what they hide shows in the counts, and `hal verify` fails such a kernel."""
    before, after = indexer(), indexer()
    after["k_context_lens"] = after["k_context_lens"] // 4
    _, right = tmo.masked_indexer_select_paged_kv(**before)
    _, wrong = tmo.masked_indexer_select_paged_kv(**after)
    assert right.tolist() == [4, 4]
    assert wrong.tolist() == [2, 1]


def test_rows_inside_an_expert_come_in_the_vendors_order() -> None:
    expand, combine, counts, total = tmo.moe_gen_idx(ints(0, 0, 1, 0).view(4, 1), 2)
    assert expand.tolist() == [3, 1, 0, 2]
    assert combine.tolist() == [2, 1, 3, 0]
    assert (counts.tolist(), total.tolist()) == ([3, 1], [0, 3, 4])


def test_moe_quantize_activates_gathers_and_scales() -> None:
    x = torch.randn(3, 16, device=D)
    smooth = torch.tensor([[1.0] * 8, [2.0] * 8], device=D)
    codes, scales = tmo.moe_quantize(
        x, smooth, token_count=ints(1, 3), gather_index=ints(2, 0, 1, 2), act_mode="silu", is_gated=True
    )
    gate, up = x.chunk(2, dim=-1)
    inner = (torch.nn.functional.silu(gate) * up)[[2, 0, 1, 2]] * torch.tensor([1.0, 2, 2, 2], device=D)[:, None]
    torch.testing.assert_close(codes.float() * scales[:, None], inner, rtol=0, atol=float(scales.max()) / 2)
    with pytest.raises(RuntimeError, match="smooth"):
        tmo.moe_quantize(x, smooth)


def test_unused_experts_rows_are_not_written() -> None:
    rows = tmo.moe_expand_input(bf16(4, 8), ints(3, 2, 1, 0), ints(0, 1, 3, 4), 1, 1)
    assert rows[:2].isfinite().all().item()
    assert rows[2:].isnan().all().item()


@pytest.fixture
def newer_card() -> Iterator[None]:
    """A card that multiplies 8-bit floats."""
    products.float8(True)
    yield
    products.float8(False)


@pytest.mark.parametrize(("name", "words"), [("scaled_matmul", float8), ("smooth_quant_group_gemm", micro)])
def test_float8_needs_a_card_that_has_it(name: str, words: Callable[[], dict[str, Any]], newer_card: None) -> None:
    getattr(tmo, name)(**words())
    products.float8(False)
    with pytest.raises(RuntimeError, match="ARCH_MISMATCH"):
        getattr(tmo, name)(**words())


@pytest.mark.parametrize(
    ("name", "words", "plant"),
    [
        ("scaled_matmul", float8, changed("a_scale", torch.Tensor.mT.__get__)),
        ("scaled_matmul", float8, changed("a_scale", lambda t: t.to(torch.float8_e8m0fnu))),
        ("scaled_matmul", float8, changed("b", lambda t: t[:100])),
        ("scaled_matmul", float8, lambda words: words.pop("a_scale")),
        ("smooth_quant_group_gemm", micro, changed("a_scale", lambda t: t.float())),
        ("smooth_quant_group_gemm", micro, swapped("a_scale", "b_scale")),
        ("smooth_quant_group_gemm", micro, lambda words: words.update(quant_flag=[4, 4])),
    ],
)
def test_planted_errors_of_float8(name: str, words: Callable[[], dict[str, Any]], plant: Any, newer_card: None) -> None:
    call = words()
    plant(call)
    with pytest.raises((RuntimeError, TypeError), match=r"torch_mlu_ops\.|argument"):
        getattr(tmo, name)(**call)
