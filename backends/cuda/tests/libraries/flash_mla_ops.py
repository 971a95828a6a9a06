"""FlashMLA's sparse decoding on the CPU, written from its documentation, refusing what its host code refuses.

Sources: `flash_mla/flash_mla_interface.py` (meaning), `csrc/api/sparse_decode.h` (checks), `tests/quant.py` (bytes).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW, CODES, TILES = 584, 448, 7
BYTES = (torch.float8_e4m3fn, torch.int8, torch.uint8)

Decoded = tuple[Tensor, Tensor, Tensor, Tensor]


def sparse_decode(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    topk_length: Tensor | None,
    attn_sink: Tensor | None,
    tile_scheduler_metadata: Tensor | None,
    num_splits: Tensor | None,
    extra_kv: Tensor | None,
    extra_indices: Tensor | None,
    extra_topk_length: Tensor | None,
    d_v: int,
    sm_scale: float,
) -> Decoded:
    """out [b, s_q, h, 512], lse [b, h, s_q], and the schedule."""
    b, s_q, heads, d_qk = q.shape
    _want(b > 0 and s_q > 0, "an empty batch")
    _want(q.dtype == torch.bfloat16 and q.stride(-1) == 1, f"q of {q.dtype}, strides {q.stride()}")
    _want(heads in (64, 128), f"{heads} heads")
    _want(d_qk == 512 and d_v == 512, f"head dimensions {d_qk}, {d_v}")
    _cache(kv, "kv")
    _list(indices, topk_length, kv, b, s_q)
    if extra_kv is None:
        _want(extra_indices is None and extra_topk_length is None, "an extra list without an extra cache")
    else:
        _cache(extra_kv, "extra_kv")
        _want(extra_indices is not None, "an extra cache without a list")
        assert extra_indices is not None
        _list(extra_indices, extra_topk_length, extra_kv, b, s_q)
    if attn_sink is not None:
        fits = attn_sink.shape == (heads,) and attn_sink.dtype == torch.float32 and attn_sink.is_contiguous()
        _want(fits, f"attn_sink {attn_sink.dtype} {tuple(attn_sink.shape)}")
    counts = _blocks(indices, topk_length) + (0 if extra_indices is None else _blocks(extra_indices, extra_topk_length))
    splits = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
    if num_splits is not None:
        _want(tile_scheduler_metadata is not None, "half a schedule")
        _want(torch.equal(num_splits, splits), "the schedule of other lengths")
    lists = [(kv, indices, topk_length)]
    if extra_kv is not None and extra_indices is not None:
        lists.append((extra_kv, extra_indices, extra_topk_length))
    out, lse = attention(q, lists, attn_sink, sm_scale)
    return out, lse.transpose(1, 2), torch.zeros(1, 8, dtype=torch.int32), splits


def attention(
    q: Tensor, lists: list[tuple[Tensor, Tensor, Tensor | None]], sink: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """out [b, s_q, h, 512] and lse [b, s_q, h] of q over the rows of (cache, list, length)."""
    gathered = [_gather(*one) for one in lists]
    rows, seen = torch.cat([one[0] for one in gathered], dim=2), torch.cat([one[1] for one in gathered], dim=2)
    logits = torch.einsum("bshd,bskd->bshk", q.double(), rows) * scale
    logits = logits.masked_fill(~seen[:, :, None], -torch.inf)
    lse = logits.logsumexp(-1)
    total = lse if sink is None else torch.logaddexp(lse, sink.double())
    share = (logits - total.unsqueeze(-1)).exp().nan_to_num(0.0)
    out = torch.einsum("bshk,bskd->bshd", share, rows).to(q.dtype)
    return out, lse.masked_fill(~seen.any(-1)[:, :, None], torch.inf).float()


def _cache(kv: Tensor, name: str) -> None:
    _want(kv.dtype in BYTES, f"{name} of {kv.dtype}")
    _want(kv.ndim == 4 and kv.shape[2:] == (1, ROW), f"{name} {tuple(kv.shape)}")
    _want(kv.stride(1) == ROW and kv.stride(3) == 1, f"{name} with gaps in a block: {kv.stride()}")
    _want(kv.data_ptr() % 16 == 0 and kv.stride(0) % 576 == 0, f"{name} at {kv.data_ptr()}, blocks of {kv.stride(0)}")


def _list(indices: Tensor, length: Tensor | None, kv: Tensor, b: int, s_q: int) -> None:
    _want(indices.dtype == torch.int32 and indices.shape[:2] == (b, s_q), f"{indices.dtype} {tuple(indices.shape)}")
    _want(indices.stride(-1) == 1, f"indices with strides {indices.stride()}")
    width = indices.shape[2]
    _want(width > 0 and width % 128 == 0, f"a list of {width}, not a multiple of 128")
    _want(bool((indices >= -1).all() and (indices < kv.shape[0] * kv.shape[1]).all()), "an index beyond the cache")
    if length is not None:
        fits = length.dtype == torch.int32 and length.shape == (b,) and length.is_contiguous()
        _want(fits, f"lengths {length.dtype} {tuple(length.shape)}")
        _want(bool((length >= 0).all() and (length <= width).all()), "a length beyond the list")


def _blocks(indices: Tensor, length: Tensor | None) -> Tensor:
    """Tiles of 64 rows that a request's list takes."""
    b, _, width = indices.shape
    lengths = torch.full((b,), width) if length is None else length
    return (lengths + 63) // 64


def _gather(kv: Tensor, indices: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows [b, s_q, k, 512] as float64, and which of them are there."""
    size = kv.shape[1]
    seen = indices >= 0
    if length is not None:
        seen &= torch.arange(indices.shape[2]) < length[:, None, None]
    at = indices.long().clamp(min=0)
    page, row = at // size, at % size
    raw = kv.view(torch.uint8).as_strided((len(kv), size * ROW), (kv.stride(0), 1))
    data = raw[page.unsqueeze(-1), row.unsqueeze(-1) * (CODES + 128) + torch.arange(CODES + 128)]
    scales = raw[page.unsqueeze(-1), size * (CODES + 128) + row.unsqueeze(-1) * 8 + torch.arange(TILES)]
    codes = data[..., :CODES].view(torch.float8_e4m3fn).double()
    nope = codes * torch.exp2(scales.double() - 127).repeat_interleave(64, dim=-1)
    rope = data[..., CODES:].contiguous().view(torch.bfloat16).double()
    rows = torch.cat([nope, rope], dim=-1)
    return rows.masked_fill(~seen.unsqueeze(-1), 0.0), seen


def _want(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"FlashMLA refuses {what}")


SCHEMA = (
    "sparse_decode_fwd(Tensor q, Tensor kv, Tensor indices, Tensor? topk_length, Tensor? attn_sink, "
    "Tensor(a!)? tile_scheduler_metadata, Tensor(b!)? num_splits, Tensor? extra_kv, Tensor? extra_indices, "
    "Tensor? extra_topk_length, int d_v, float sm_scale{more}) -> (Tensor, Tensor, Tensor(a)?, Tensor(b)?)"
)
"""As the wheels' shared objects have it; `more` differs."""


def register() -> list[torch.library.Library]:
    """Operators of sgl-flash-mla 1.0.0, which its own Python then calls."""

    def legacy(*arguments: object, kv_format: str | None = None) -> Decoded:
        *common, last = arguments if len(arguments) == 13 else (*arguments, kv_format)
        _want(last in (None, "V32", "V32_NO_ROPE", "V4", "V41", "V41_FP4"), f"kv_format {last}")
        _want(last in (None, "V4"), f"rows of {ROW} bytes as {last}")
        return sparse_decode(*common)  # type: ignore[arg-type]

    def current(*arguments: object) -> Decoded:
        raise RuntimeError("FlashMLA refuses rows of 584 bytes: these kernels read V4.1")

    made = []
    for space, more, body in (
        ("flash_mla_legacy", ", str? kv_format=None", legacy),
        ("flash_mla", ", bool enable_batch_invariant=False", current),
    ):
        library = torch.library.Library(space, "DEF")
        library.define(SCHEMA.format(more=more))
        library.impl("sparse_decode_fwd", body, "CPU")
        made.append(library)
    return made
