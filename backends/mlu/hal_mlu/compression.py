"""The compressor's pooling and rows into caches by torch_mlu_ops. Prefill, chunked prefill and decode are one path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from hal_plain.compression import normalised
from torch import Tensor

from hal.derived import derived
from hal.formats import hadamard_transform
from hal.rope import Rope
from hal_mlu import tmo

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache, StateCache


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: kv, score [tokens, width] -> entries[entries, head_dim]; advances `state`."""
    entries = kv.new_empty(len(batch.entries(ratio).index), kv.shape[1] // (2 if overlap else 1))
    if not batch.tokens:
        return entries
    with _dense(state.tensor) as states:
        tmo.operator("fused_compress_multi_kv")(
            kv=kv.contiguous(),
            score=score.contiguous(),
            state_cache=states,
            state_block_table=batch.derive(("mlu", "states"), lambda: batch.slots.int().unsqueeze(1)),
            cu_seqlens=batch.cu_seqlens,
            positions=batch.derive(("mlu", "positions"), lambda: batch.positions.int()),
            ape=ape.contiguous(),
            max_seqlen=max(batch.lengths),
            overlap=overlap,
            compressed_kv=entries,
        )
    return entries


def store(
    values: Tensor,
    norm: Tensor | None,
    rope: Rope,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
    *,
    hadamard: bool,
    eps: float,
) -> None:
    """`attn.store`: values[rows, head_dim] normalised, rotated, transformed and written to physical rows `slots`."""
    if not len(values):
        return
    rows = normalised(values, norm, eps)
    rows = rows.clone() if rows is values else rows
    sin, cos, order = derived(positions, ("mlu", "angles", rope), lambda: _angles(rope, positions))
    tmo.operator("apply_rotary")(
        input=rows[:, None, -rope.dim :],
        sin_cache=sin,
        cos_cache=cos,
        position_ids=order,
        cu_seqlens=None,
        interleaved=True,
        discrete=True,
        dynamic_ntk=False,
        max_seqlen=len(rows),
    )
    rows = hadamard_transform(rows) if hadamard else rows
    rows = cache.layout.quantize_rows(rows, cache.pages.dtype)
    with _dense(cache.pages) as pages:
        tmo.operator("reshape_paged_cache")(
            k=rows.unsqueeze(1),
            v=None,
            k_cache=pages.unsqueeze(1),
            v_cache=None,
            slot_mapping=derived(slots, ("mlu", "int32"), slots.int),
        )


def _angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sines and cosines of each row, every value twice for its pair [rows, rope.dim]; and the rows' numbers."""
    cos, sin = (angle.repeat_interleave(2, dim=-1) for angle in rope.cos_sin(positions))
    return sin, cos, torch.arange(len(positions), dtype=torch.int32, device=positions.device)


@contextmanager
def _dense(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor for an operator that writes to contiguous memory only: itself, or a copy that is written back."""
    dense = tensor.contiguous()
    yield dense
    if dense is not tensor:
        tensor.copy_(dense)
