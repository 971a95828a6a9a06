"""The compressor, and rows into caches, by torch_mlu_ops: one kernel for a token per request, two for more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from hal_plain.compression import normalised
from torch import Tensor
from torch.nn import functional as F

from hal.derived import derived
from hal.formats import hadamard_transform
from hal.rope import Rope
from hal_mlu import tmo

if TYPE_CHECKING:
    from hal.batch import Batch
    from hal.cache import KVCache, StateCache


def compress(
    x: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm: Tensor,
    rope: Rope,
    batch: Batch,
    state: StateCache,
    cache: KVCache,
    *,
    ratio: int,
    overlap: bool,
    hadamard: bool,
    eps: float,
) -> None:
    """`attn.compress`: x[tokens, hidden] -> entries in `cache`; advances `state`.

    Which of the two ways a batch goes is known on the host, so nothing waits for the card.
    """
    kv, score = F.linear(x.float(), wkv.float()), F.linear(x.float(), wgate.float())
    if batch.tokens and max(batch.lengths) == 1:
        _decode(kv, score, ape, norm, rope, batch, state, cache, ratio, overlap, hadamard, eps)
        return
    entries = batch.entries(ratio)
    pooled = compress_pool(kv, score, ape, batch, state, ratio=ratio, overlap=overlap)
    rows = cache.physical(batch.slots[entries.request], entries.index)
    store(pooled.to(x.dtype), norm, rope, entries.positions, rows, cache, hadamard=hadamard, eps=eps)


def _decode(
    kv: Tensor,
    score: Tensor,
    ape: Tensor,
    norm: Tensor,
    rope: Rope,
    batch: Batch,
    state: StateCache,
    cache: KVCache,
    ratio: int,
    overlap: bool,
    hadamard: bool,
    eps: float,
) -> None:
    """A token of each request: pooled, normalised, rotated, transformed and written by one kernel.

    It rounds rows to the cache's dtype; what a layout rounds further is rounded in place.
    """
    pages, entries = cache.pages, batch.entries(ratio)
    window, rest = batch.positions // ratio, (batch.positions + 1) % ratio
    slots = cache.physical(batch.slots[batch.request], window.where(rest == 0, -1))
    with _dense(state.tensor) as states, _dense(pages) as dense:
        tmo.operator("fused_compress_single_kv")(
            kv=kv,
            score=score,
            position=batch.derive(("mlu", "positions"), lambda: batch.positions.int()),
            ape=ape.contiguous(),
            gamma=norm.contiguous(),
            **_tables(rope, batch),
            hadamard_matrix=_hadamard(norm, pages) if hadamard else None,
            slot_mapping=slots.int(),
            kv_cache=dense,
            kv_cache_scale=None,
            eps=eps,
            overlap=overlap,
            state_cache=states,
            state_bt=_state_table(batch, state),
            state_width=kv.shape[1],
            state_block_size=state.tensor.shape[1],
            cu_query_len=batch.cu_seqlens,
        )
    if cache.layout.name != "rows_bf16":
        rows = cache.physical(batch.slots[entries.request], entries.index)
        _write(pages.flatten(0, 1)[rows], rows, cache)


def _state_table(batch: Batch, state: StateCache) -> Tensor:
    """The state block of every block of positions of each request, int32 [requests, blocks]: always its one block.

    torch_mlu_ops looks a position's block up by `position // block_size`; our block is a ring.
    """
    size = state.tensor.shape[1]
    ends = (start + length for start, length in zip(batch.starts, batch.lengths, strict=True))
    blocks = -(-max(ends, default=0) // size)

    def table() -> Tensor:
        return batch.slots.int().unsqueeze(1).expand(-1, blocks).contiguous()

    return batch.derive(("mlu", "state blocks", size), table)


def _tables(rope: Rope, batch: Batch) -> dict[str, Tensor]:
    """Sines and cosines of every position up to the batch's last, each value twice for its pair."""
    longest = max(start + length for start, length in zip(batch.starts, batch.lengths, strict=True))
    table = rope.table(1 << (longest - 1).bit_length(), batch.device)

    def doubled() -> dict[str, Tensor]:
        cos, sin = (half.repeat_interleave(2, dim=-1) for half in table.chunk(2, dim=-1))
        return {"sin": sin, "cos": cos}

    return derived(table, "mlu", doubled)


def _hadamard(norm: Tensor, pages: Tensor) -> Tensor:
    """The orthonormal matrix in the dtype of the cache."""
    size = len(norm)
    return derived(
        norm, ("mlu", "hadamard"), lambda: hadamard_transform(torch.eye(size, device=norm.device)).to(pages.dtype)
    )


def compress_pool(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, state: StateCache, *, ratio: int, overlap: bool
) -> Tensor:
    """`attn.compress_pool`: kv, score [tokens, width] -> entries[entries, head_dim]; advances `state`.

    torch_mlu_ops keeps every token's row in pages before it pools any window. Where a request has more tokens than its
    ring has rows, they are kept in pages of their own, and the last ones go to the ring afterwards.
    """
    entries = kv.new_empty(len(batch.entries(ratio).index), kv.shape[1] // (2 if overlap else 1))
    if not batch.tokens:
        return entries
    size = state.tensor.shape[1]
    apart = batch.derive(("mlu", "state pages", ratio, overlap, size), lambda: Apart.of(batch, ratio, overlap, size))
    if apart is None:
        with _dense(state.tensor) as states:
            _multi(kv, score, ape, batch, states, _state_table(batch, state), overlap, entries)
        return entries
    pages = state.tensor.new_empty(apart.pages, *state.tensor.shape[1:])
    pages.flatten(0, 1)[apart.before] = state.tensor[apart.kept]
    _multi(kv, score, ape, batch, pages, apart.table, overlap, entries)
    state.tensor[apart.ring] = pages.flatten(0, 1)[apart.after]
    return entries


def _multi(
    kv: Tensor, score: Tensor, ape: Tensor, batch: Batch, states: Tensor, table: Tensor, overlap: bool, entries: Tensor
) -> None:
    tmo.operator("fused_compress_multi_kv")(
        kv=kv.contiguous(),
        score=score.contiguous(),
        state_cache=states,
        state_block_table=table,
        cu_seqlens=batch.cu_seqlens,
        positions=batch.derive(("mlu", "positions"), lambda: batch.positions.int()),
        ape=ape.contiguous(),
        max_seqlen=max(batch.lengths),
        overlap=overlap,
        compressed_kv=entries,
    )


@dataclass(frozen=True)
class Apart:
    """Pages for the tokens of a batch and those before them that its windows need, and what moves to and from the ring.

    Attributes:
        pages: how many pages of the ring's size.
        table: int32 [requests, blocks], page of each block of positions, -1 where none is needed.
        kept, ring: (slot, row) in the state of what is copied before, and of what is kept afterwards.
        before, after: the same rows among all pages'.
    """

    pages: int
    table: Tensor
    kept: tuple[Tensor, Tensor]
    before: Tensor
    ring: tuple[Tensor, Tensor]
    after: Tensor

    @classmethod
    def of(cls, batch: Batch, ratio: int, overlap: bool, size: int) -> Apart | None:
        """None where no two positions that a request needs share a row of its ring. Host numbers only."""
        starts = [max(0, start // ratio - overlap) * ratio for start in batch.starts]
        ends = [start + length for start, length in zip(batch.starts, batch.lengths, strict=True)]
        if all(end - start <= size for start, end in zip(starts, ends, strict=True)):
            return None
        table = torch.full((len(ends), -(-max(ends) // size)), -1, dtype=torch.int32)
        pages, moved = 0, ([], [], [], [])  # type: tuple[int, tuple[list[Tensor], ...]]
        for request, (first, start, end) in enumerate(zip(starts, batch.starts, ends, strict=True)):
            low, high = first // size, -(-end // size)
            table[request, low:high] = torch.arange(pages, pages + high - low)
            shift = (pages - low) * size
            for into, span in ((0, (first, start)), (2, (max(start, end - size), end))):
                positions = torch.arange(*span)
                moved[into].append(torch.full_like(positions, request))
                moved[into + 1].append(positions + shift)
            pages += high - low
        kept, before, ring, after = (torch.cat(part).to(batch.device) for part in moved)
        slots = batch.slots
        return cls(
            pages, table.to(batch.device), (slots[kept], before % size), before, (slots[ring], after % size), after
        )


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
    _write(hadamard_transform(rows) if hadamard else rows, slots, cache)


def _write(rows: Tensor, slots: Tensor, cache: KVCache) -> None:
    """Rows into pages of plain rows, rounded as their layout rounds them."""
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
