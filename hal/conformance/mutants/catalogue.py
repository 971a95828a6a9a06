"""Every mutant, with the place where its bug happened; and honest copies of the references."""

from __future__ import annotations

from types import SimpleNamespace

from hal.conformance.mutants.planted import Mutant, Planted
from hal.constraints import dim, layout

__all__ = ["BACKENDS", "HONEST", "MUTANTS"]

_HERE = "hal.conformance.mutants"
_GITHUB = "https://github.com/"


def _planted(
    contract: str, module: str, name: str, issue: str, says: str, *constraints: object, **flags: bool
) -> Mutant:
    return Mutant(contract, f"{_HERE}.{module}:{name}", says, _GITHUB + issue, constraints, flags)  # type: ignore[arg-type]


MUTANTS = (
    _planted(
        "attn.attend",
        "attention",
        "ignored_page_stride",
        "vllm-project/vllm/issues/47783",
        "the stride between pages is ignored",
    ),
    _planted(
        "attn.attend",
        "attention",
        "sink_dropped",
        "ROCm/rocm-libraries/pull/12229",
        "the sink is missing from the denominator",
    ),
    _planted(
        "attn.attend",
        "attention",
        "window_too_wide",
        "huggingface/transformers/issues/39408",
        "the window has one row too many",
    ),
    _planted("attn.attend", "attention", "lse_in_base_two", "lightseekorg/tokenspeed/pull/571", "lse is in base 2"),
    _planted(
        "attn.attend",
        "attention",
        "nan_where_nothing_is_seen",
        "tracel-ai/burn/issues/4694",
        "a query that sees nothing is NaN",
    ),
    _planted(
        "attn.attend",
        "attention",
        "row_minus_one_read",
        "gittensor-ai-lab/sparkinfer/pull/152",
        "row -1 is read as a row",
    ),
    _planted(
        "attn.attend",
        "attention",
        "zero_times_garbage",
        "vllm-project/vllm/pull/39645",
        "unwritten memory is multiplied by zero",
    ),
    _planted(
        "attn.select",
        "attention",
        "unfinished_entry_seen",
        "vllm-project/tpu-inference/issues/3536",
        "a query chooses the entry it is in the middle of",
    ),
    _planted(
        "attn.select",
        "attention",
        "order_changes",
        "hw-native-sys/pypto-lib/issues/368",
        "the same input gives another order at the next run",
    ),
    _planted(
        "attn.index_scores",
        "attention",
        "no_relu",
        "ml-explore/mlx-lm/pull/1189",
        "scores are summed over heads without ReLU",
    ),
    _planted(
        "attn.compress_pool",
        "compression",
        "stale_slot_read",
        "ggml-org/llama.cpp/pull/27624",
        "a new request reads the state of its slot's last one",
    ),
    _planted(
        "attn.compress_pool",
        "compression",
        "short_chunk_forgotten",
        "vllm-project/vllm/pull/56196",
        "chunks shorter than a window leave no state",
    ),
    _planted(
        "attn.store",
        "compression",
        "rope_in_halves",
        "vllm-project/vllm-ascend/issues/12765",
        "RoPE pairs channels of two halves",
    ),
    _planted(
        "attn.compress",
        "compression",
        "rotated_by_entry_number",
        "ml-explore/mlx-lm/pull/1189",
        "entries are rotated by their number instead of their window's start",
    ),
    _planted(
        "attn.store",
        "compression",
        "write_past_the_end",
        "gittensor-ai-lab/sparkinfer/issues/41",
        "bytes behind the last page are written",
    ),
    _planted(
        "attn.store",
        "compression",
        "skipped_row_written",
        "gittensor-ai-lab/sparkinfer/pull/152",
        "a row of -1 is written at the end of the cache",
    ),
    _planted(
        "moe.route",
        "experts",
        "bias_in_weights",
        "huggingface/transformers/pull/41647",
        "the selection bias enters the weights",
    ),
    _planted(
        "moe.route",
        "experts",
        "scale_twice",
        "vllm-project/vllm/issues/24118",
        "the routed scaling factor is applied twice",
    ),
    _planted(
        "moe.route",
        "experts",
        "scale_forgotten",
        "sgl-project/sglang/pull/31449",
        "the routed scaling factor is lost after normalisation",
    ),
    _planted("moe.ffn", "experts", "unused_slot_computed", "vllm-project/vllm/issues/47281", "expert -1 is computed"),
    _planted("moe.experts", "experts", "clamp_missing", "sgl-project/sglang/pull/39939", "SwiGLU is not clamped"),
    _planted(
        "moe.experts",
        "experts",
        "gate_clamped_below",
        "anthony-chaudhary/fak/issues/4837",
        "the gate is clamped from below too",
    ),
    _planted(
        "moe.experts", "experts", "weight_twice", "vllm-project/vllm/pull/43694", "routing weights are applied twice"
    ),
    _planted(
        "moe.combine",
        "experts",
        "padding_summed",
        "tgale96/grouped_gemm/issues/36",
        "padding rows leak NaN into the sum",
    ),
    _planted(
        "moe.combine",
        "experts",
        "residual_overwritten",
        "NVIDIA/earth2studio/issues/1133",
        "the result is written into an argument",
    ),
    _planted(
        "moe.combine",
        "experts",
        "summed_in_bfloat16",
        "modular/modular/issues/7165",
        "partial sums are added in bfloat16",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "split_sum_in_bfloat16",
        "flagos-ai/FlagGems/pull/5876",
        "parts of a split sum are rounded to bfloat16",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "truncating_cast",
        "ROCm/aiter/issues/5151",
        "the result is truncated instead of rounded",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "transposed_scales",
        "deepseek-ai/DeepGEMM/pull/403",
        "scales are read in the wrong layout",
    ),
    _planted(
        "quant.matmul", "matmul", "swapped_nibbles", "triton-lang/triton/pull/5197", "the high nibble comes first"
    ),
    _planted(
        "quant.quantize",
        "matmul",
        "scale_rounded_down",
        "ml-explore/mlx/pull/4353",
        "ue8m0 scales are rounded down and codes saturate",
    ),
    _planted(
        "quant.matmul", "matmul", "assumed_contiguous", "ROCm/aiter/issues/5292", "strides of an input are ignored"
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "order_of_parts_changes",
        "vllm-project/vllm/issues/56887",
        "parts are added in another order at the next run",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "split_where_tokens_are_few",
        "vllm-project/vllm/issues/30321",
        "declared batch invariant, but small batches are summed in another order",
        batch_invariant=True,
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "same_kernel_twice",
        "lightseekorg/tokenspeed/pull/1689",
        "the kernel under test is the reference",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "ran_on_the_host",
        "opendatalab/MinerU/issues/1695",
        "an operator silently runs on the host",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "scheme_not_implemented",
        "ROCm/composable_kernel/issues/3095",
        "declares a scheme that it cannot run",
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "outputs_in_tiles_of_128",
        "ROCm/aiter/pull/2273",
        "declares sizes that it computes wrong",
        dim("outputs").between(1, 4096),
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "works_beyond_its_list",
        "vllm-project/vllm/pull/36292",
        "refuses schemes that it computes right",
        layout("weight").one_of("bf16"),
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "no_tokens_refused",
        "lightseekorg/tokenspeed/pull/1077",
        "a batch without tokens fails to launch",
    ),
    _planted(
        "quant.matmul", "matmul", "segmentation_fault", "ROCm/aiter/pull/2447", "the process dies of a memory fault"
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "mask_read_in_a_graph",
        "pytorch/pytorch/issues/78549",
        "declared capturable, and a mask as an index makes the host wait for the device",
        capturable=True,
    ),
    _planted(
        "quant.matmul",
        "matmul",
        "process_ended",
        "AtomaAI/atoma-infer/issues/156",
        "the library ends the process on an error",
    ),
    _planted(
        "mhc.post",
        "mhc",
        "mixed_untransposed",
        "NVIDIA-NeMo/Automodel/issues/2154",
        "streams mix by comb instead of its transpose",
    ),
    _planted(
        "mhc.pre",
        "mhc",
        "one_round_too_few",
        "AI-Hypercomputer/maxtext/pull/4337",
        "rows and columns are balanced once less",
    ),
)
"""One bug each."""

HONEST = tuple(
    Mutant(contract, f"{_HERE}.{module}:{name}", "the reference, copied", flags={"capturable": name == "matmul"})
    for contract, module, name in (
        ("attn.attend", "attention", "attend"),
        ("attn.select", "attention", "select"),
        ("attn.index_scores", "attention", "index_scores"),
        ("attn.compress_pool", "compression", "compress_pool"),
        ("attn.store", "compression", "store"),
        ("moe.route", "experts", "route"),
        ("moe.experts", "experts", "experts"),
        ("moe.combine", "experts", "combine"),
        ("moe.ffn", "experts", "ffn"),
        ("quant.matmul", "matmul", "matmul"),
        ("quant.quantize", "matmul", "quantize"),
        ("mhc.pre", "mhc", "pre"),
        ("mhc.post", "mhc", "post"),
    )
)
"""Nothing wrong: the suite must pass them."""

BACKENDS = SimpleNamespace(**{mutant.name.replace("-", "_"): Planted(mutant) for mutant in (*MUTANTS, *HONEST)})
"""The backends that entry points name."""
