"""Rows before they meet a cache: `apply_rotary`, `reshape_paged_cache`."""

from __future__ import annotations

import torch
from torch import Tensor

from hal_emulators.mlu.ops.check import FLOATS, INT32, Checks, operator


@operator
def apply_rotary(
    input: Tensor,
    sin_cache: Tensor,
    cos_cache: Tensor,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    interleaved: bool,
    discrete: bool,
    dynamic_ntk: bool,
    max_seqlen: int,
    output: Tensor | None = None,
    is_inverse: bool = False,
) -> Tensor:
    """In place unless `output` is given. Tables are as wide as the channels turned: each value twice if interleaved."""
    check = Checks("apply_rotary")
    check("input", input, FLOATS, "tokens heads channels", contiguous=False)
    check("sin_cache", sin_cache, (input.dtype, torch.float32), "rows channels")
    check("cos_cache", cos_cache, (sin_cache.dtype,), "rows channels")
    check("position_ids", position_ids, INT32, "tokens")
    check.absent(cu_seqlens=cu_seqlens)
    check.that(input.stride(-1) == 1, "input's last dimension must be dense")
    check.that(
        interleaved and discrete and not dynamic_ntk, "only interleaved pairs at discrete positions are emulated"
    )
    check.that(position_ids is not None, "discrete positions need position_ids")
    assert position_ids is not None
    check.indices("position_ids", position_ids, 0, len(sin_cache))
    sin, cos = (table[position_ids.long()].float()[:, None] for table in (sin_cache, cos_cache))
    if is_inverse:
        sin = -sin
    value = input.float()
    turned = torch.empty_like(value)
    turned[..., 0::2] = value[..., 0::2] * cos[..., 0::2] - value[..., 1::2] * sin[..., 0::2]
    turned[..., 1::2] = value[..., 1::2] * cos[..., 1::2] + value[..., 0::2] * sin[..., 1::2]
    target = input if output is None else output
    return target.copy_(turned)


@operator
def reshape_paged_cache(
    k: Tensor,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor | None,
    slot_mapping: Tensor,
    direction: bool = False,
) -> None:
    """Writes rows [tokens, heads, channels] into pages [blocks, heads, rows, channels]; negative slots are skipped."""
    check = Checks("reshape_paged_cache")
    check("k", k, FLOATS, "tokens heads channels", contiguous=False)
    check("k_cache", k_cache, (k.dtype,), "blocks heads rows channels")
    check("slot_mapping", slot_mapping, INT32, "tokens")
    check.that((v is None) == (v_cache is None), "v and v_cache go together")
    check.that(v is None, "values are the keys here")
    check.that(not direction, "reading back is not emulated")
    size = k_cache.shape[2]
    kept = slot_mapping >= 0
    check.indices("slot_mapping", slot_mapping[kept], 0, len(k_cache) * size)
    slots = slot_mapping[kept].long()
    k_cache[torch.div(slots, size, rounding_mode="floor"), :, slots % size] = k[kept]
