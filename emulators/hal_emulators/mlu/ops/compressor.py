"""DeepSeek's compressor: `fused_compress_multi_kv` and `fused_compress_single_kv`.

Both keep values, and scores with `ape`, of a sequence's tokens in pages: the token at position p is in row `p % size`
of page `table[sequence, p // size]`. Documented are bfloat16 tokens for the first; vllm-mlu passes float32.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import INT32, Checks, operator

F32 = (torch.float32,)
FLOATS = (torch.bfloat16, torch.float32)
SHAPES = {(True, 4, 128), (True, 4, 512), (False, 128, 512)}


@operator
def fused_compress_multi_kv(
    kv: Tensor,
    score: Tensor,
    state_cache: Tensor,
    state_block_table: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor,
    ape: Tensor,
    max_seqlen: int,
    overlap: bool,
    compressed_kv: Tensor,
) -> tuple[Tensor, Tensor]:
    """Keeps every token's row, and only then pools the windows that are complete: no two may share a row."""
    check = Checks("fused_compress_multi_kv")
    ends = _tokens(check, kv, score, ape, overlap, state_cache, state_block_table, cu_seqlens, positions)
    check("compressed_kv", compressed_kv, FLOATS, "entries channels")
    longest = max((end - begin for begin, end in pairwise(ends)), default=0)
    check.that(longest <= max_seqlen, f"a sequence has {longest} tokens, more than max_seqlen {max_seqlen}")
    pages = _Pages(check, state_cache, state_block_table, ape, overlap)
    for sequence, (begin, end) in enumerate(pairwise(ends)):
        for token in range(begin, end):
            at = int(positions[token])
            check.that(token == begin or at == int(positions[token - 1]) + 1, "positions of a sequence must count up")
            pages.keep(sequence, at, kv[token], score[token])
    tokens = ((sequence, int(at)) for sequence, span in enumerate(pairwise(ends)) for at in positions[slice(*span)])
    found = [pages.entry(sequence, at) for sequence, at in tokens if at % len(ape) == len(ape) - 1]
    check.that(
        len(found) == len(compressed_kv), f"compressed_kv has {len(compressed_kv)} rows, {len(found)} windows end"
    )
    for row, entry in enumerate(found):
        compressed_kv[row] = entry
    return state_cache, compressed_kv


@operator
def fused_compress_single_kv(
    kv: Tensor,
    score: Tensor,
    position: Tensor,
    ape: Tensor,
    gamma: Tensor,
    sin: Tensor,
    cos: Tensor,
    hadamard_matrix: Tensor | None,
    slot_mapping: Tensor,
    kv_cache: Tensor,
    kv_cache_scale: Tensor | None,
    eps: float,
    overlap: bool,
    state_cache: Tensor,
    state_bt: Tensor,
    state_width: int,
    state_block_size: int,
    cu_query_len: Tensor,
    K: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One new token per sequence; a window that it completes is normalised, rotated, transformed and stored.

    The entry is rotated by the window's first position, and goes to row `slot_mapping` of the cache.
    """
    check = Checks("fused_compress_single_kv")
    check("position", position, INT32, "tokens")
    ends = _tokens(check, kv, score, ape, overlap, state_cache, state_bt, cu_query_len, position)
    check("gamma", gamma, FLOATS, "channels")
    check("sin", sin, FLOATS, "table rope")
    check("cos", cos, (sin.dtype,), "table rope")
    check("kv_cache", kv_cache, FLOATS, "pages rows channels")
    check("hadamard_matrix", hadamard_matrix, (kv_cache.dtype,), "channels channels")
    check("slot_mapping", slot_mapping, INT32, "tokens")
    check.absent(kv_cache_scale=kv_cache_scale)
    check.that(K == 0, "tokens of multi-token prediction (K) are not emulated")
    check.that(state_width == ape.shape[1], f"state_width is {state_width}, wanted coff * head_dim = {ape.shape[1]}")
    size = state_cache.shape[1]
    check.that(state_block_size == size, f"state_block_size is {state_block_size}, the cache's blocks have {size} rows")
    check.that(all(end - begin <= 1 for begin, end in pairwise(ends)), "a sequence has more than one new token")
    check.indices("slot_mapping", slot_mapping.clip(min=0), 0, kv_cache.shape[0] * kv_cache.shape[1])
    pages, ratio, rows = _Pages(check, state_cache, state_bt, ape, overlap), len(ape), kv_cache.flatten(0, 1)
    for sequence, (begin, end) in enumerate(pairwise(ends)):
        for token in range(begin, end):
            at = int(position[token])
            pages.keep(sequence, at, kv[token], score[token])
            if at % ratio < ratio - 1:
                continue
            check.that(at < len(sin), f"position {at}, sin and cos have {len(sin)} rows")
            entry = pages.entry(sequence, at)
            entry = entry / torch.sqrt((entry * entry).mean() + eps) * gamma.float()
            entry = _turned(entry, sin[at + 1 - ratio].float(), cos[at + 1 - ratio].float())
            if hadamard_matrix is not None:
                entry = entry @ hadamard_matrix.float()
            if int(slot_mapping[token]) >= 0:
                rows[int(slot_mapping[token])] = entry.to(kv_cache.dtype)
    return state_cache, kv_cache, kv_cache_scale


def _turned(entry: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Interleaved pairs of the last channels, each angle twice."""
    still, turning = entry[: -len(sin)], entry[-len(sin) :]
    across = torch.stack([-turning[1::2], turning[0::2]], dim=-1).flatten()
    return torch.cat([still, turning * cos + across * sin])


def _tokens(
    check: Checks,
    kv: Tensor,
    score: Tensor,
    ape: Tensor,
    overlap: bool,
    state_cache: Tensor,
    table: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor,
) -> list[int]:
    """What both take; where the sequences end."""
    check("kv", kv, FLOATS, "tokens width")
    check("score", score, (kv.dtype,), "tokens width")
    check("ape", ape, F32, "ratio width")
    ratio, channels = len(ape), ape.shape[1] // (2 if overlap else 1)
    check.sizes |= {"channels": channels, "both": 2 * ape.shape[1]}
    shape = (overlap, ratio, channels)
    check.that(shape in SHAPES, f"(overlap, ratio, channels) is {shape}, wanted one of {sorted(SHAPES)}")
    check("state_cache", state_cache, F32, "blocks size both")
    check("state block table", table, INT32, "sequences columns")
    check.sizes["ends"] = len(table) + 1
    check("cu_seqlens", cu_seqlens, INT32, "ends")
    check("positions", positions, INT32, "tokens")
    ends: list[int] = cu_seqlens.tolist()
    check.that(ends[0] == 0 and ends[-1] == len(kv), f"cu_seqlens runs {ends[0]}..{ends[-1]} over {len(kv)} tokens")
    return ends


class _Pages:
    """Paged rows of values and scores, and the windows among them."""

    def __init__(self, check: Checks, cache: Tensor, table: Tensor, ape: Tensor, overlap: bool) -> None:
        self.check, self.cache, self.table, self.ape, self.overlap = check, cache, table, ape, overlap

    def row(self, sequence: int, position: int) -> Tensor:
        """The kept row of a position."""
        size = self.cache.shape[1]
        column = position // size
        inside = column < self.table.shape[1]
        self.check.that(inside, f"position {position} is in block {column}, the table has {self.table.shape[1]}")
        page = int(self.table[sequence, column])
        self.check.that(0 <= page < len(self.cache), f"block {column} of a sequence is page {page}, which is none")
        return self.cache[page, position % size]

    def keep(self, sequence: int, position: int, kv: Tensor, score: Tensor) -> None:
        """Values, and scores with the row of `ape` of their position."""
        scored = score.float() + self.ape[position % len(self.ape)]
        self.row(sequence, position).copy_(torch.cat([kv.float(), scored]))

    def entry(self, sequence: int, last: int) -> Tensor:
        """The entry that the token at position `last` completes, float32."""
        ratio, width = len(self.ape), self.ape.shape[1]
        channels = width // 2 if self.overlap else width
        own = torch.stack([self.row(sequence, p) for p in range(last - ratio + 1, last + 1)])
        picked = [(own[:, :width][:, -channels:], own[:, width:][:, -channels:])]
        if self.overlap and last >= ratio:
            before = torch.stack([self.row(sequence, p) for p in range(last - 2 * ratio + 1, last - ratio + 1)])
            picked.append((before[:, :width][:, :channels], before[:, width:][:, :channels]))
        value, score = (torch.cat(part) for part in zip(*picked, strict=True))
        weight = torch.exp(score - score.amax(0))
        return (weight * value).sum(0) / weight.sum(0)
