"""FlashInfer's packed attention of the sm120 family on the CPU, refusing what it refuses.

Sources: `flashinfer/mla/_core.py`, `flashinfer/mla/_sparse_mla_sm120/_api.py` (the rows are FlashMLA's).
"""

from __future__ import annotations

from typing import Any

import torch
from flash_mla_ops import attention
from torch import Tensor


def run(
    query: Tensor, lists: list[tuple[Tensor | None, Tensor | None, Tensor | None]], sinks: Tensor | None, scale: float
) -> Tensor:
    """out [tokens, heads, 512] of query over the rows of (pages [blocks, rows, 1, 584], list, lengths)."""
    want(query.dtype == torch.bfloat16 and query.ndim == 3 and query.shape[2] == 512, f"query {query.dtype}")
    tokens, heads, _ = query.shape
    want(heads in (8, 16, 32, 64, 128), f"{heads} heads")
    if sinks is not None:
        want(sinks.dtype == torch.float32 and sinks.shape == (heads,) and sinks.is_contiguous(), "sinks")
    return attention(query.unsqueeze(1), [_segment(*one, tokens) for one in lists], sinks, scale)[0].squeeze(1)


def _segment(
    pages: Tensor | None, rows: Tensor | None, lengths: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A packed cache, its list and the lengths, in the forms that are accepted."""
    assert pages is not None
    assert rows is not None
    assert lengths is not None
    want(pages.dtype == torch.uint8 and pages.shape[-1] == 584, f"pages {pages.dtype} {tuple(pages.shape)}")
    want(pages.ndim == 4 and pages.shape[2] == 1, f"pages {tuple(pages.shape)}")
    packed = pages.stride(1) == 584 and pages.stride(3) == 1
    want(packed and pages.data_ptr() % 16 == 0 and pages.stride(0) % 16 == 0, f"pages with strides {pages.stride()}")
    want(rows.dtype == torch.int32 and rows.ndim == 2 and len(rows) == tokens, f"a list of {rows.dtype}")
    want(rows.shape[1] > 0 and rows.shape[1] % 64 == 0 and rows.stride(1) == 1, f"a list of {rows.shape[1]}")
    want(lengths.dtype == torch.int32 and lengths.shape == (tokens,), f"lengths {lengths.dtype}")
    want(bool((lengths <= rows.shape[1]).all()), "a length beyond the list")
    want(bool((rows >= -1).all() and (rows < pages.shape[0] * pages.shape[1]).all()), "an index beyond the cache")
    return pages, rows.unsqueeze(1), lengths


def want(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"FlashInfer refuses {what}")


def functional_run(
    query: Tensor,
    kv_cache: Tensor,
    indices: Tensor,
    output: Tensor,
    workspace: Tensor,
    sm_scale: float,
    *,
    lengths: Tensor | None,
    sink: Tensor | None,
    extra: Tensor | None,
    extra_indices: Tensor | None,
    extra_lengths: Tensor | None,
    kv_scale_format: str,
    **words: Any,
) -> None:
    """What the library's own Python calls when it has looked at its arguments."""
    want(kv_scale_format == "auto" and not any(words.get(name) for name in ("is_dsv4_nvfp4", "extra_fp4")), "a format")
    lists = [(kv_cache, indices, lengths)]
    if extra is not None and extra_indices is not None:
        lists.append((extra, extra_indices, extra_lengths))
    output.copy_(run(query, lists, sink, sm_scale))
