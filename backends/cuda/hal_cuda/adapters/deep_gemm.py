"""`quant.matmul`, `attn.select` with `attn.index_scores`, and `moe.experts` with DeepGEMM.

Rows are quantised by the Triton kernel, bit for bit as the contracts say; the products are DeepGEMM's. Scales are given
as float32, which it brings into its chip's form; those of weights are brought there once. Source: DeepGEMM,
`csrc/apis/{gemm,attention,layout}.hpp`, `deep_gemm/__init__.py` of 2.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from hal_triton.common import widest
from torch import Tensor
from torch.nn import functional as F

from hal.derived import derived
from hal.errors import ContractError
from hal.formats import hadamard_transform
from hal.rope import rotate
from hal_cuda.adapters import probe
from hal_cuda.adapters.lists import per_table, records, token_slots

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache
    from hal.dispatched import Dispatched
    from hal.formats import PackedWeight
    from hal.rope import Rope

__all__ = ["experts", "index_scores", "matmul", "scales_of", "select"]

GEMM, GROUPED = "fp8_fp4_gemm_nt", "m_grouped_fp8_fp4_gemm_nt_contiguous"
ALIGNMENT = ("get_mk_alignment_for_contiguous_layout", "get_m_alignment_for_contiguous_layout")
LOGITS, SCHEDULE = "fp8_fp4_paged_mqa_logits", "get_paged_mqa_logits_metadata"
PAGE = 64
"""Rows of a page of the indexer's cache, on every chip and in every version."""
SCORES = 1 << 26
"""Scores held at a time: 256 MiB, and twice as much for the keys that order them."""


def quantize(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Codes and ue8m0 scales of x[rows, features]."""
    from hal_triton.matmul import quantize as by_triton

    codes, scales = by_triton(x, activation=activation)
    return codes, scales


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: x[tokens, features] bfloat16 times an `fp8_block128` weight, features a multiple of 128."""
    y = torch.empty(len(x), weight.shape[0], dtype=x.dtype, device=x.device)
    if len(x):
        codes, scales = quantize(x, activation)
        product = probe.function("deep_gemm", GEMM)
        product((codes, scales.float()), *_weight(weight, y), **recipes(activation, weight))
    return y


def select(
    q: Tensor,
    weights: Tensor,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    *,
    top_k: int,
    ratio: int,
    hadamard: bool,
    scale: float,
) -> Tensor:
    """`attn.select`: rotation, transform and choice are torch's, the quantiser Triton's, the scores DeepGEMM's.

    Nothing is scored while every visible entry is chosen.
    """
    tokens, width, visible = len(q), widest(batch, cache, ratio), batch.visible(ratio)[:, None]
    if width <= top_k:
        place = torch.arange(top_k, dtype=torch.int32, device=q.device)
        return torch.where(place < visible, place, -1)
    cos, sin = batch.derive(("rope", rope), lambda: rope.cos_sin(batch.positions))
    turned = rotate(q, cos, sin)
    turned = hadamard_transform(turned) if hadamard else turned
    chosen, step = [], max(1, SCORES // width)
    for low in range(0, tokens, step):
        scores = _scores(turned, weights, batch, cache, ratio, scale, low, min(low + step, tokens))
        best = _best(scores, top_k)
        chosen.append(torch.where(best < visible[low : low + step], best, -1).int())
    return torch.cat(chosen)


def _best(scores: Tensor, top_k: int) -> Tensor:
    """Places of the largest scores of each row; of equal ones the first. Keys are a score's bits, then its place."""
    bits = (scores + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    last = (1 << 32) - 1
    keys = ordered | (last - torch.arange(scores.shape[1], device=scores.device))
    return last - (keys.topk(top_k, dim=-1).values & last)


def index_scores(q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, *, ratio: int, scale: float) -> Tensor:
    """`attn.index_scores`: q[tokens, heads, 128], which holds values of the cache's quantiser; pages of 64 rows."""
    return _scores(q, weights, batch, cache, ratio, scale, 0, len(q))


def _scores(
    q: Tensor, weights: Tensor, batch: Batch, cache: KVCache, ratio: int, scale: float, low: int, high: int
) -> Tensor:
    """Scores of the batch's tokens from `low` to `high`: every token is a request of one query.

    Queries in FP8 give their scale to `weights`, which commutes with ReLU.
    """
    if cache.layout.block_size != PAGE:
        raise ContractError(
            f"pages of {cache.layout.block_size} rows, DeepGEMM reads pages of {PAGE}",
            where="DeepGEMM",
            fix=f"allocate the indexer's cache with pages of {PAGE} rows, or set HAL_OPS='attn.select=cuda.select'",
        )
    width, heads, dim, activation = widest(batch, cache, ratio), *q.shape[1:], cache.layout.index_activation
    tokens = high - low
    if not tokens or not width:
        return torch.empty(tokens, width, device=q.device)
    codes, scales = quantize(q[low:high].reshape(-1, dim).contiguous(), activation)
    factors = weights[low:high].float() * scale
    query: tuple[Tensor, Tensor | None]
    if activation == "e2m1_32":
        query = codes.view(torch.int8).view(tokens, 1, heads, -1), scales.view(torch.int32).view(tokens, 1, heads)
    else:
        query, factors = (codes.view(tokens, 1, heads, dim), None), factors * scales.float().view(tokens, heads)

    def make() -> tuple[Tensor, Tensor, Tensor]:
        return _schedule(batch, cache, ratio, low, high)

    lengths, table, schedule = per_table(batch, cache, ("DeepGEMM", ratio, low, high), make)
    known = probe.parameters("deep_gemm", LOGITS)
    logits: Tensor = probe.function("deep_gemm", LOGITS)(
        query,
        records(cache),
        factors.contiguous(),
        lengths,
        table,
        schedule,
        width,
        **{word: value for word, value in (("clean_logits", False), ("logits_dtype", torch.float32)) if word in known},
    )
    unseen = torch.arange(width, device=q.device) >= batch.visible(ratio)[low:high, None]
    return logits[:, :width].masked_fill(unseen, -torch.inf)


def _schedule(batch: Batch, cache: KVCache, ratio: int, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths [tokens, 1], at least 1, pages [tokens, pages] and how the work is cut, all int32."""
    lengths = batch.visible(ratio)[low:high].clamp(min=1).int().unsqueeze(1)
    table = cache.block_table[token_slots(batch)[low:high]].clamp_min(0)
    sms = probe.function("deep_gemm", "get_num_sms")()
    return lengths, table, probe.function("deep_gemm", SCHEDULE)(lengths, PAGE, sms)


def experts(dispatched: Dispatched, w13: PackedWeight, w2: PackedWeight, *, clamp: float, activation: str) -> Tensor:
    """`moe.experts`: two grouped products, the clamped SwiGLU between them; segments are brought to its alignment."""
    rows = len(dispatched.rows)
    if not rows:
        return torch.empty(0, w2.shape[1], dtype=dispatched.dtype, device=dispatched.rows.device)
    assert dispatched.scales is not None
    product, segments = probe.function("deep_gemm", GROUPED), aligned(dispatched)
    codes = dispatched.rows.view(torch.uint8)[segments.source].view(dispatched.rows.dtype)
    scales = dispatched.scales.float()[segments.source]
    both = codes.new_empty(len(codes), w13.shape[1], dtype=dispatched.dtype)
    product((codes, scales), *_weight(w13, both), segments.expert, **recipes(dispatched.activation, w13))
    gate, up = both.float().chunk(2, dim=-1)
    inner = F.silu(gate.clamp(max=clamp)) * up.clamp(-clamp, clamp) * dispatched.weights[segments.source, None]
    codes, scales = quantize(inner.to(dispatched.dtype), activation)
    out = both.new_empty(len(codes), w2.shape[1])
    product((codes, scales.float()), *_weight(w2, out), segments.expert, **recipes(activation, w2))
    return out[segments.back]


class Segments(NamedTuple):
    """Experts' rows, each expert's from a multiple of the alignment on.

    Attributes:
        source: int64 [aligned rows], which row each is; any row where it is padding.
        expert: int32 [aligned rows], -1 where it is padding.
        back: int64 [rows], where each row went; anything where that was padding.
    """

    source: Tensor
    expert: Tensor
    back: Tensor


def aligned(dispatched: Dispatched) -> Segments:
    """As many rows as any distribution over the experts may need, so that no count goes to the host.

    Rows that a dispatch of this backend aligned already stay where they are.
    """
    size = int(probe.function("deep_gemm", *ALIGNMENT)())
    counts, starts, rows = dispatched.counts, dispatched.offsets(), len(dispatched.rows)
    if getattr(dispatched.route, "alignment", 1) % size == 0:
        place = torch.arange(rows, device=counts.device)
        known = (torch.searchsorted(starts, place, right=True) - 1).clamp(min=0)
        return Segments(place, torch.where(place < (starts + counts)[known], known, -1).int(), place)
    lengths = (counts + size - 1) // size * size
    ends = lengths.cumsum(0)
    place = torch.arange((rows + len(counts) * (size - 1)) // size * size, device=counts.device)
    expert = torch.searchsorted(ends, place, right=True)
    known = expert.clamp(max=len(counts) - 1)
    offset = place - (ends - lengths)[known]
    used = (expert < len(counts)) & (offset < counts[known])
    source = torch.where(used, starts[known] + offset, rows)
    back = torch.zeros(rows + 1, dtype=torch.int64, device=counts.device)
    back[source] = place
    return Segments(source.clamp(max=rows - 1), torch.where(used, known, -1).int(), back[:rows])


def recipes(activation: str, weight: PackedWeight) -> dict[str, tuple[int, int]]:
    """Rows and columns that share a scale, of both operands."""
    return {"recipe_a": (1, int(activation.split("_")[1])), "recipe_b": _grain(weight)}


def _weight(weight: PackedWeight, out: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    codes = weight.codes.view(torch.int8) if weight.scheme == "mxfp4" else weight.codes
    return (codes, scales_of(weight)), out


def _grain(weight: PackedWeight) -> tuple[int, int]:
    rows, columns = (128, 128) if weight.scheme == "fp8_block128" else (1, 32)
    return (1 if scales_of(weight).dtype == torch.int32 else rows), columns


def scales_of(weight: PackedWeight) -> Tensor:
    """The weight's scales as the chip wants them: float32, or four ue8m0 in an int32."""
    return derived(weight, ("DeepGEMM", "scales"), lambda: _transformed(weight))


def _transformed(weight: PackedWeight) -> Tensor:
    assert weight.scales is not None
    scales, (outputs, features) = weight.scales.float().contiguous(), weight.shape[-2:]
    words: dict[str, Any] = {"num_groups": weight.shape[0]} if len(weight.shape) == 3 else {}
    made: Tensor = probe.function("deep_gemm", "transform_sf_into_required_layout")(
        sf=scales,
        mn=outputs,
        k=features,
        recipe=(128, 128) if weight.scheme == "fp8_block128" else (1, 32),
        **words,
    )
    if made.dtype == torch.int32 and bool((scales.frexp().mantissa != 0.5).any()):
        raise ContractError(
            "scales of a weight are no powers of two, and this chip multiplies with powers of two only",
            where="DeepGEMM",
            fix="prepare the weight with ue8m0 scales, or set HAL_OPS='quant.matmul=cuda.matmul'",
        )
    return made
