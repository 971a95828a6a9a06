"""What the adapters can do. They come before the Triton kernels; where a library is missing, that is the reason."""

from __future__ import annotations

from typing import Any

from hal.constraints import Constraint, Facts, attribute, check, dim, dtype, layout, needs
from hal.kernel import Kernel
from hal.target import Target
from hal_cuda.adapters.probe import offered, parameters

__all__ = ["EP_TOKENS", "adapters"]

EP_TOKENS = 8192
"""Tokens that one process may dispatch at a time through DeepEP. All processes of a group must agree on it."""

HALVES = (("accumulate", "fp8_tensor_core"), ("weights", "bfloat16"), ("hidden", "bfloat16"))
"""DeepGEMM's grouped products write bfloat16 and nothing else, gate and up included."""


def adapters(target: Target) -> list[Kernel]:
    """The adapters of a chip, best first."""
    return [*_flash_mla(target), *_flashinfer(target), *_deep_gemm(target), *_deep_ep(target), *_megamoe(target)]


def _flash_mla(target: Target) -> list[Kernel]:
    library = offered(target, "flash_mla", "flash_mla_with_kvcache", "get_mla_metadata", form=_reads_v4)
    common = (
        needs("flashmla"),
        library,
        dtype("q").one_of("bfloat16"),
        dim("head_dim").one_of(512),
        dim("heads").between(1, 128),
        layout("window").one_of("v4_584"),
        layout("compressed").one_of("v4_584"),
    )
    return [
        _kernel(
            "attend.flash_mla.selected",
            "attn.attend",
            "flash_mla:attend_selected",
            *common,
            layout("rows").one_of("selected"),
            capturable=True,
            notes="Sparse decoding; lists are read as far as they are filled. Heads are padded to 64 or 128.",
        ),
        _kernel(
            "attend.flash_mla",
            "attn.attend",
            "flash_mla:attend",
            *common,
            capturable=True,
            notes="Sparse decoding over lists with -1 anywhere. Heads are padded to 64 or 128.",
        ),
    ]


def _flashinfer(target: Target) -> list[Kernel]:
    common = (
        needs("flashinfer"),
        offered(target, "flashinfer", "trtllm_batch_decode_sparse_mla_dsv4", form=_reads_packed),
        dtype("q").one_of("bfloat16"),
        dim("head_dim").one_of(512),
        dim("heads").between(1, 128),
        layout("window").one_of("v4_584"),
        layout("compressed").one_of("v4_584"),
        layout("lse").one_of("none"),
    )
    return [
        _kernel(
            "attend.flashinfer.selected",
            "attn.attend",
            "flashinfer:attend_selected",
            *common,
            layout("rows").one_of("selected"),
            capturable=True,
            notes="DeepSeek-V4 decoding; lists are read as far as they are filled. Heads are padded to 8 ... 128.",
        ),
        _kernel(
            "attend.flashinfer",
            "attn.attend",
            "flashinfer:attend",
            *common,
            capturable=True,
            notes="DeepSeek-V4 decoding over lists with -1 anywhere. Heads are padded to 8 ... 128.",
        ),
    ]


def _deep_gemm(target: Target) -> list[Kernel]:
    blackwell = "tcgen05" in target.features
    transform = "transform_sf_into_required_layout"
    grouped = "m_grouped_fp8_fp4_gemm_nt_contiguous"
    alignment = "get_mk_alignment_for_contiguous_layout|get_m_alignment_for_contiguous_layout"
    products = offered(target, "deep_gemm", grouped, transform, alignment, form=_takes_recipes)
    experts = (needs("deepgemm"), products, dtype("rows").one_of("bfloat16"), dim("hidden").multiple_of(128))
    inner = dim("inter").multiple_of(128)
    paged = ("fp8_fp4_paged_mqa_logits", "get_paged_mqa_logits_metadata")
    logits = (
        needs("deepgemm"),
        offered(target, "deep_gemm", *paged, form=_exact_logits if blackwell else None),
        dtype("q").one_of("bfloat16"),
        dim("index_dim").one_of(128),
        dim("index_heads").one_of(*((8, 16, 32, 64) if blackwell else (32, 64))),
        layout("cache").one_of("index_fp8_132", *(("index_mxfp4_68",) if blackwell else ())),
    )
    return [
        _kernel(
            "matmul.deep_gemm",
            "quant.matmul",
            "deep_gemm:matmul",
            needs("deepgemm"),
            offered(target, "deep_gemm", "fp8_fp4_gemm_nt", transform, form=_takes_recipes),
            dtype("x").one_of("bfloat16"),
            layout("weight").one_of("fp8_block128"),
            attribute("activation").one_of("e4m3_128"),
            dim("features").multiple_of(128),
            dim("outputs").multiple_of(64),
            capturable=True,
            notes="FP8 blocks: rows quantised by Triton, scales in the chip's form, weights' once.",
        ),
        _kernel(
            "select.deep_gemm",
            "attn.select",
            "deep_gemm:select",
            *logits,
            capturable=True,
            notes="Paged logits over pages of 64 rows, every token a request of one query; torch rotates and chooses.",
        ),
        _kernel(
            "index_scores.deep_gemm",
            "attn.index_scores",
            "deep_gemm:index_scores",
            *logits,
            notes="Paged logits over pages of 64 rows, every token a request of one query. Its width is the host's.",
        ),
        _kernel(
            "experts.deep_gemm",
            "moe.experts",
            "deep_gemm:experts",
            *experts,
            inner,
            layout("w13").one_of("fp8_block128"),
            layout("w2").one_of("fp8_block128"),
            attribute("activation").one_of("e4m3_128"),
            precision=HALVES,
            capturable=True,
            notes="Two grouped products over segments brought to its alignment. Gate and up are rounded to bfloat16.",
        ),
        _kernel(
            "experts.deep_gemm.fp4",
            "moe.experts",
            "deep_gemm:experts",
            *experts,
            inner,
            needs("fp4_mma"),
            layout("w13").one_of("mxfp4"),
            layout("w2").one_of("mxfp4"),
            attribute("activation").one_of("e4m3_128", "e4m3_32"),
            precision=HALVES,
            capturable=True,
            notes="As experts.deep_gemm, FP8 rows times FP4 weights.",
        ),
    ]


def _deep_ep(target: Target) -> list[Kernel]:
    buffer = offered(target, "deep_ep", "ElasticBuffer")
    few = check(_few, says=f"at most {EP_TOKENS} tokens in one process")
    return [
        _kernel(
            "dispatch.deep_ep",
            "moe.dispatch",
            "deep_ep:dispatch",
            needs("deepep"),
            buffer,
            dtype("x").one_of("bfloat16"),
            attribute("activation").one_of("none", "e4m3_128"),
            few,
            notes="Over a group: one row per expert, segments of 128; counts go to the host. Alone: cuda.dispatch.",
        ),
        _kernel(
            "combine.deep_ep",
            "moe.combine",
            "deep_ep:combine",
            needs("deepep"),
            buffer,
            dtype("rows").one_of("bfloat16"),
            few,
            notes="Sends back what dispatch.deep_ep sent; the residual is its bias. Other rows: cuda.combine.",
        ),
    ]


def _megamoe(target: Target) -> list[Kernel]:
    functions = ("fp8_fp4_mega_moe", "get_symm_buffer_for_mega_moe", "transform_weights_for_mega_moe")
    return [
        _kernel(
            "ffn.megamoe",
            "moe.ffn",
            "megamoe:ffn",
            needs("megamoe"),
            offered(target, "deep_gemm", *functions, "transform_sf_into_required_layout"),
            dtype("x").one_of("bfloat16"),
            dim("hidden").multiple_of(128),
            dim("inter").multiple_of(128),
            layout("w13").one_of("mxfp4"),
            layout("w2").one_of("mxfp4"),
            attribute("activation").one_of("e4m3_32"),
            check(_few, says=f"at most {EP_TOKENS} tokens in one process"),
            notes="Over a group: one kernel, and an addition for the residual. Within one process: Triton's three.",
        )
    ]


def _few(facts: Facts) -> bool:
    """Not a cut of the range: every process of a group must take the same kernel, whatever it has to send."""
    tokens = facts.dims.get("tokens", 0)
    return (tokens[1] if isinstance(tokens, tuple) else tokens) <= EP_TOKENS


def _takes_recipes() -> str:
    return "" if "recipe_b" in parameters("deep_gemm", "fp8_fp4_gemm_nt") else "of a version before 2.6"


def _reads_packed() -> str:
    known = parameters("flashinfer", "trtllm_batch_decode_sparse_mla_dsv4")
    return "" if {"kv_cache_format", "extra_sparse_indices"} <= known else "of a version before 0.7"


def _exact_logits() -> str:
    if "logits_dtype" not in parameters("deep_gemm", "fp8_fp4_paged_mqa_logits"):
        return "of a version whose logits are bfloat16 on this chip"
    return ""


def _reads_v4() -> str:
    known = parameters("flash_mla", "flash_mla_with_kvcache")
    if "extra_k_cache" not in known:
        return "of a version before DeepSeek-V4"
    if "enable_batch_invariant" in known and not known & {"out", "use_legacy"}:
        return "of a version that reads rows of DeepSeek-V4.1 only"
    return ""


def _kernel(name: str, contract: str, function: str, *constraints: Constraint, notes: str, **more: Any) -> Kernel:
    return Kernel(f"cuda.{name}", contract, f"hal_cuda.adapters.{function}", constraints, notes=notes, **more)
