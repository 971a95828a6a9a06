"""DeepGEMM on the CPU, written from its documentation, refusing what its host code refuses.

Sources: `csrc/apis/{gemm,layout,attention}.hpp` and `csrc/utils/layout.hpp` (checks), `tests/generators.py` (meaning of
scales, of packed FP4, of grouped layouts), `tests/test_attention.py` (logits, pages).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ARCH = {0: 9}
"""Major compute capability of the chip that is pretended."""

ALIGNMENT, SMS = 128, 132
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)

Recipe = tuple[int, ...]


def want(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"DeepGEMM refuses {what}")


def transform(sf: Tensor, mn: int, k: int, recipe: Recipe, num_groups: int | None, is_sfa: bool | None) -> Tensor:
    """Scales as this chip's products take them."""
    want((len(recipe) == 3) == (is_sfa is not None), f"recipe {recipe} with is_sfa {is_sfa}")
    rows, columns = recipe if len(recipe) == 2 else (recipe[0 if is_sfa else 1], recipe[2])
    _fits(sf, mn, k, rows, columns, num_groups)
    if sf.dtype == torch.float32 and ARCH[0] == 9:
        want(columns == 128 and rows in (1, 128), f"scales of ({rows}, {columns}) on this chip")
        if rows == 128:
            want(sf.is_contiguous() or sf.mT.is_contiguous(), f"scales with strides {sf.stride()}")
            return sf
        return _major(sf, 4)
    want(ARCH[0] == 10, f"{sf.dtype} scales on this chip")
    want(columns in (32, 128), f"scales per {columns} columns")
    if sf.dtype == torch.int32:
        want(rows == 1 and (sf.stride(-2) == 1 or mn == 1), "packed scales that are not MN-major")
        return sf
    exponents = (sf.repeat_interleave(rows, dim=-2)[..., :mn, :].contiguous().view(torch.int32) >> 23).to(torch.uint8)
    padded = torch.nn.functional.pad(exponents, (0, -exponents.shape[-1] % 4))
    return _major(padded.contiguous().view(torch.int32), 4)


def _major(sf: Tensor, align: int) -> Tensor:
    """The same values, rows side by side in memory, columns apart by a multiple of `align` rows."""
    rows = -(-sf.shape[-2] // align) * align
    made = torch.zeros(*sf.shape[:-2], sf.shape[-1], rows, dtype=sf.dtype).mT[..., : sf.shape[-2], :]
    return made.copy_(sf)


def _fits(sf: Tensor, mn: int, k: int, rows: int, columns: int, groups: int | None) -> None:
    want(sf.dtype in (torch.float32, torch.int32), f"scales of {sf.dtype}")
    per = 1 if sf.dtype == torch.float32 else 4
    shape = (*(() if groups is None else (groups,)), -(-mn // rows), -(-k // (columns * per)))
    want(tuple(sf.shape) == shape, f"scales {tuple(sf.shape)}, wanted {shape}")


def _values(codes: Tensor) -> Tensor:
    """Codes of e4m3, or two e2m1 a byte, low nibble first, as float64."""
    want(codes.stride(-1) == 1 and (codes.ndim < 3 or codes.is_contiguous()), f"codes with strides {codes.stride()}")
    if codes.dtype == torch.float8_e4m3fn:
        return codes.double()
    want(codes.dtype == torch.int8 and ARCH[0] == 10, f"codes of {codes.dtype} on this chip")
    nibbles = torch.stack([codes & 15, (codes >> 4) & 15], dim=-1).flatten(-2).long()
    return E2M1[nibbles & 7] * (1 - 2 * (nibbles >> 3))


def _scaled(codes: Tensor, sf: Tensor, recipe: tuple[int, int], groups: int | None, is_sfa: bool) -> Tensor:
    values = _values(codes)
    mn, k = values.shape[-2:]
    sf = transform(sf, mn, k, recipe, groups, None)
    if sf.dtype == torch.int32:
        exponents = sf.unsqueeze(-1).view(torch.uint8).flatten(-2)[..., : -(-k // recipe[1])]
        scales = torch.exp2(exponents.double() - 127).repeat_interleave(recipe[1], dim=-1)
    else:
        scales = sf.double().repeat_interleave(recipe[0], dim=-2).repeat_interleave(recipe[1], dim=-1)
    return values * scales[..., :mn, :k]


def _pair(
    sfa: Tensor, sfb: Tensor, recipe: Recipe | None, a: Recipe | None, b: Recipe | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    want((a is None) == (b is None), "one of two recipes")
    want(recipe is None or a is None, "a recipe twice")
    if a is not None and b is not None:
        return (a[0], a[1]), (b[0], b[1])
    if recipe is None:
        want(ARCH[0] == 10 or sfb.dtype == sfa.dtype == torch.float32, "scales without a recipe")
        recipe = (1, 1, 128) if sfb.dtype == torch.int32 else (1, 128, 128)
    return (recipe[0], recipe[2]), (recipe[1], recipe[2])


def gemm(
    a: Tensor,
    a_sf: Tensor,
    b: Tensor,
    b_sf: Tensor,
    d: Tensor,
    c: Tensor | None,
    recipe: Recipe | None,
    recipe_a: Recipe | None,
    recipe_b: Recipe | None,
) -> None:
    """d[m, n] = a[m, k] b[n, k]^T."""
    want(d.dtype in (torch.bfloat16, torch.float32) and d.stride(-1) == 1, f"d of {d.dtype}")
    want(c is None, "an accumulator here")
    grain_a, grain_b = _pair(a_sf, b_sf, recipe, recipe_a, recipe_b)
    left, right = _scaled(a, a_sf, grain_a, None, True), _scaled(b, b_sf, grain_b, None, False)
    want(left.shape[1] == right.shape[1] and d.shape == (len(left), len(right)), f"{left.shape} x {right.shape}")
    want(len(right) % 64 == 0 and left.shape[1] % 128 == 0, f"{len(right)} outputs of {left.shape[1]} features")
    d.copy_(left @ right.T)


def grouped(
    a: Tensor,
    a_sf: Tensor,
    b: Tensor,
    b_sf: Tensor,
    d: Tensor,
    layout: Tensor,
    recipe: Recipe | None,
    recipe_a: Recipe | None,
    recipe_b: Recipe | None,
) -> None:
    """d[m, n] = a[m, k] b[layout[m], n, k]^T, rows of one expert from multiples of the alignment on."""
    want(d.dtype == torch.bfloat16 and d.stride(-1) == 1, f"d of {d.dtype}")
    want(layout.dtype == torch.int32 and layout.is_contiguous(), f"a layout of {layout.dtype}")
    want(tuple(layout.shape) == (len(a),), f"a layout of {tuple(layout.shape)} for {len(a)} rows")
    groups = len(b)
    grain_a, grain_b = _pair(a_sf, b_sf, recipe, recipe_a, recipe_b)
    left, right = _scaled(a, a_sf, grain_a, None, True), _scaled(b, b_sf, grain_b, groups, False)
    want(d.shape == (len(left), right.shape[1]), f"d {tuple(d.shape)}")
    for low in range(0, len(layout), ALIGNMENT):
        block = layout[low : low + ALIGNMENT]
        expert = int(block[0])
        want(bool(((block == expert) | (block == -1)).all()) and expert < groups, "a block of several experts")
        part = slice(low, low + len(block))
        d[part] = torch.nan if expert < 0 else (left[part] @ right[expert].T).to(d.dtype)


def schedule(context_lens: Tensor, block_kv: int, num_sms: int, indices: Tensor | None = None) -> Tensor:
    """How paged logits cut their work; here only what tells lengths apart."""
    want(context_lens.ndim == 2 and context_lens.dtype == torch.int32 and context_lens.is_contiguous(), "lengths")
    want(block_kv == 64 and num_sms == SMS and indices is None, f"pages of {block_kv}, {num_sms} processors")
    made = torch.zeros(num_sms + 1, 2, dtype=torch.int32)
    made[0, 0] = int(((context_lens + 255) // 256).sum())
    return made


def paged_logits(
    q: Tensor,
    q_sf: Tensor | None,
    pages: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    logits_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[b * next_n, max_context_len], garbage beyond each length."""
    packed = q.dtype == torch.int8
    b, next_n, heads, width = q.shape
    dim = width * 2 if packed else width
    want(q.is_contiguous() and (packed or q.dtype == torch.float8_e4m3fn), f"q of {q.dtype}")
    want(dim in (64, 128) and heads in ((32, 64) if ARCH[0] == 9 else (8, 16, 32, 64)), f"{heads} heads of {dim}")
    want((q_sf is not None) == packed and (not packed or ARCH[0] == 10), "scales of queries on this chip")
    if q_sf is not None:
        want(q_sf.dtype == torch.int32 and q_sf.shape == q.shape[:3] and q_sf.is_contiguous(), "scales of queries")
    blocks, rows, one, row = pages.shape
    want(pages.dtype == torch.uint8 and one == 1 and rows == 64 and row == width + 4, f"pages {tuple(pages.shape)}")
    want(pages.stride(1) == row and pages.stride(3) == 1 and pages.stride(0) % 4 == 0, f"pages {pages.stride()}")
    want(weights.dtype == torch.float32 and weights.shape == (b * next_n, heads), f"weights of {weights.dtype}")
    want(weights.stride(1) == 1, "weights across memory")
    want(block_table.dtype == torch.int32 and len(block_table) == b and block_table.stride(1) == 1, "a block table")
    fits = context_lens.dtype == torch.int32 and context_lens.shape == (b, next_n) and context_lens.is_contiguous()
    want(fits, "lengths")
    want(torch.equal(schedule_meta, schedule(context_lens, rows, SMS)), "the schedule of other lengths")
    want(bool((context_lens > 0).all() and (context_lens <= max_context_len).all()), "a length of nothing, or too long")
    stride = -(-max_context_len // 256) * 256
    logits = torch.full((b * next_n, stride), torch.nan, dtype=logits_dtype)[:, :max_context_len]
    data = pages.as_strided((blocks, rows * row), (pages.stride(0), 1))
    codes = data[:, : rows * width].contiguous().view(blocks, rows, width)
    tail = data[:, rows * width :].contiguous().view(blocks, rows, 4)
    if packed:
        keys = _values(codes.view(torch.int8)) * torch.exp2(tail.double() - 127).repeat_interleave(32, dim=-1)
        assert q_sf is not None
        factors = torch.exp2(q_sf.unsqueeze(-1).view(torch.uint8).double() - 127).repeat_interleave(32, dim=-1)
        queries = _values(q) * factors
    else:
        keys = codes.view(torch.float8_e4m3fn).double() * tail.view(torch.float32).double()
        queries = q.double()
    for row_index in range(b * next_n):
        length = int(context_lens.flatten()[row_index])
        table = block_table[row_index // next_n]
        pages_read = table[: -(-length // rows)].long()
        want(bool(((pages_read >= 0) & (pages_read < blocks)).all()), "a page that is not there")
        k = keys[pages_read].flatten(0, 1)[:length]
        scores = torch.relu(queries.flatten(0, 1)[row_index] @ k.T)
        logits[row_index, :length] = (weights[row_index].double() @ scores).to(logits_dtype)
    return logits


SCHEMAS = Path(__file__).with_name("deep_gemm_schemas.txt")
"""Every operator of sgl-deep-gemm 0.2.5, as its shared object has them."""


def register() -> torch.library.Library:
    """Its operators, which its own Python then calls; those that this project reaches compute."""
    library = torch.library.Library("deep_gemm", "DEF")
    for schema in SCHEMAS.read_text().splitlines():
        library.define(schema)
    for name, body in {"init": _nothing, "set_mlopart_callbacks": _nothing, "shutdown": _nothing}.items():
        library.impl(name, body, "CompositeExplicitAutograd")
    library.impl("get_num_sms", lambda: SMS, "CompositeExplicitAutograd")
    library.impl("get_mk_alignment_for_contiguous_layout", lambda: ALIGNMENT, "CompositeExplicitAutograd")
    library.impl("fp8_fp4_gemm_nt", _gemm, "CPU")
    library.impl("m_grouped_fp8_fp4_gemm_nt_contiguous", _grouped, "CPU")
    library.impl("transform_sf_into_required_layout", _transform, "CPU")
    library.impl("get_paged_mqa_logits_metadata", schedule, "CPU")
    library.impl("fp8_fp4_paged_mqa_logits", _logits, "CPU")
    return library


def _nothing(*arguments: object) -> None:
    """What prepares a GPU."""


def _gemm(a: Tensor, a_sf: Tensor, b: Tensor, b_sf: Tensor, d: Tensor, *rest: Any) -> None:
    gemm(a, a_sf, b, b_sf, d, *rest[:4])
    want(rest[6:] == (None, 0, None, None, None), f"an epilogue: {rest[6:]}")


def _grouped(a: Tensor, a_sf: Tensor, b: Tensor, b_sf: Tensor, d: Tensor, layout: Tensor, *rest: Any) -> None:
    grouped(a, a_sf, b, b_sf, d, layout, *rest[:3])
    want(rest[5] is False and rest[8:] == (0, None, None, None), "sums of rows, or an epilogue")


def _transform(sf: Tensor, mn: int, k: int, a: int, b: int, c: int | None, *rest: Any) -> Tensor:
    recipe = (a, b) if c is None else (a, b, c)
    return transform(sf, mn, k, recipe, rest[0], rest[1]).clone()


def _logits(q: Tensor, q_sf: Tensor | None, pages: Tensor, *rest: Any) -> Tensor:
    want(ARCH[0] != 10, "float32 weights on this chip: its logits are bfloat16 in this version")
    want(rest[5] is None, "indices")
    return paged_logits(q, q_sf, pages, *rest[:5])
