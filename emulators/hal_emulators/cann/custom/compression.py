"""The compressor and what stores its entries (csrc/attention/compressor/README.md and the epilogues beside it)."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.cann.custom import kernel
from hal_emulators.cann.custom.attention import ROPE, ROW, TILE

RING = 2  # cache_mode: one ring of coff * ratio rows per bank


@kernel
def compressor(
    x: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    state_cache: Tensor,
    ape: Tensor,
    norm_weight: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    state_block_table: Tensor,
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    start_pos: Tensor,
    rope_head_dim: int,
    cmp_ratio: int,
    coff: int,
    norm_eps: float,
    rotary_mode: int,
    cache_mode: int,
) -> Tensor:
    """Entries [min(T, T // ratio + B), D] after norm and RoPE, packed by request; the tail is not written."""
    if cache_mode != RING or rotary_mode != 2 or rope_head_dim != ROPE or x.dtype != wkv.dtype:
        raise RuntimeError("cache_mode and rotary_mode are 2, rope_head_dim is 64, x and its weights have one dtype")
    width = len(wkv) // coff
    kv, gate = (x.float() @ weight.float().T for weight in (wkv, wgate))
    out = x.new_empty(min(len(x), len(x) // cmp_ratio + len(start_pos)), width)
    ring, made = coff * cmp_ratio, 0
    for request, start in enumerate(start_pos.tolist()):
        state = state_cache[int(state_block_table.flatten()[request])]
        for token in range(int(cu_seqlens[request]), int(cu_seqlens[request + 1])):
            position = start + token - int(cu_seqlens[request])
            state[position % ring] = torch.cat([kv[token], gate[token] + ape[position % cmp_ratio]])
            if (position + 1) % cmp_ratio:
                continue
            entry = _pooled(state, position, cmp_ratio, coff, width)
            entry = entry * torch.rsqrt(entry.square().mean() + norm_eps) * norm_weight.float()
            out[made] = _turned(entry.to(x.dtype), rope_cos[made].float(), rope_sin[made].float())
            made += 1
    return out


def _pooled(state: Tensor, last: int, ratio: int, coff: int, width: int) -> Tensor:
    """One entry: per channel, values weighted by the softmax of scores over this window (and the one before)."""
    values, scores = [], []
    for part in range(coff):  # the window before gives its first channels, this one its last
        window = torch.arange(last + 1 - ratio * (coff - part), last + 1 - ratio * (coff - part - 1))
        if int(window[0]) < 0:
            continue
        rows = state[window % (coff * ratio)]
        values.append(rows[:, part * width : (part + 1) * width])
        scores.append(rows[:, (coff + part) * width : (coff + part + 1) * width])
    return (torch.cat(scores).softmax(0) * torch.cat(values)).sum(0)


def _turned(entry: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rope = entry[-ROPE:].float()
    other = torch.stack([-rope[1::2], rope[0::2]], -1).flatten()
    return torch.cat([entry[:-ROPE], (rope * cos + other * sin).to(entry.dtype)])


@kernel
def kv_compress_epilog(
    kv_compress_cache: Tensor,
    x: Tensor,
    slot_mapping: Tensor,
    quant_group_size: int,
    quant_mode: int,
    round_scale_flag: bool,
    layout: int,
) -> None:
    """Rows x [n, 512] as 640 bytes at `slot_mapping`; negative slots are skipped. Scales are rounded up to ue8m0."""
    settings = (quant_group_size, quant_mode, round_scale_flag, layout)
    if settings != (TILE, 2, True, 1) or kv_compress_cache.shape[1:] != (1, ROW) or x.dtype != torch.bfloat16:
        raise RuntimeError(f"the cache is [rows, 1, {ROW}], x bf16, the settings (64, 2, True, 1), not {settings}")
    keep = slot_mapping >= 0
    rows = x[keep].float()
    tiles = rows[:, :-ROPE].unflatten(-1, (-1, TILE))
    exponent = torch.ceil(torch.log2(tiles.abs().amax(-1).clamp_min(1e-4) / 448))
    codes = (tiles * torch.exp2(-exponent).unsqueeze(-1)).to(torch.float8_e4m3fn).flatten(1)
    packed = torch.cat(
        [
            x[keep][:, -ROPE:].contiguous().view(torch.uint8),
            codes.view(torch.uint8),
            (exponent + 127).to(torch.uint8),
        ],
        -1,
    )
    kv_compress_cache.view(torch.uint8)[slot_mapping[keep].long(), 0, : packed.shape[1]] = packed
