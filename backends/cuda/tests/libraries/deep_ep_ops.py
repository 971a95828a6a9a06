"""DeepEP's elastic buffer among threads: what its documentation says that a dispatch in expanded form and a combine do.

Source: `deep_ep/buffers/elastic.py`. `group` has `rank()`, `size()` and, instead of a network, `exchange(value)`, which
gives every process's value.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Received(NamedTuple):
    """Rows of this process's experts, expert by expert from multiples of the alignment on; NaN between them.

    `metadata` int32 [tokens received, 2 + top_k]: global number of a token, unused, and its slots here or -1.
    `ends` int32 [local experts]: where each expert's rows end.
    """

    rows: Tensor
    sf: Tensor | None
    weights: Tensor
    metadata: Tensor
    ends: Tensor
    counts: Tensor


def want(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"DeepEP refuses {what}")


def dispatch(
    group: Any,
    rows: Tensor,
    sf: Tensor | None,
    ids: Tensor,
    weights: Tensor,
    most: int,
    experts: int,
    align: int,
    order: int = 1,
) -> Received:
    """`order` -1: an expert's rows arrive last token first, as on a network they may."""
    tokens, hidden = rows.shape
    want(rows.dtype == (torch.bfloat16 if sf is None else torch.float8_e4m3fn), f"rows of {rows.dtype}")
    want(rows.is_contiguous(), "rows with gaps")
    if sf is not None:
        fits = sf.dtype == torch.float32 and sf.shape == (tokens, -(-hidden // 128))
        want(fits, f"scales {sf.dtype} {tuple(sf.shape)}")
    want(ids.dtype == torch.int64 and len(ids) == tokens, f"ids {ids.dtype}")
    want(weights.dtype == torch.float32 and weights.shape == ids.shape, f"weights {weights.dtype}")
    want(bool((ids < experts).all() and (ids >= -1).all()), "an expert that is not there")
    want(tokens <= most, f"{tokens} tokens of {most}")
    everyone = group.exchange((rows, sf, ids, weights, most, experts))
    want(len({one[4:] for one in everyone}) == 1, "processes that do not agree")
    want(experts % group.size() == 0, f"{experts} experts among {group.size()}")
    local = experts // group.size()
    low = group.rank() * local
    seen = [(one[2] >= low) & (one[2] < low + local) for one in everyone]
    heard = [(rank, token) for rank, mask in enumerate(seen) for token in mask.any(1).nonzero().flatten().tolist()]
    number = {pair: index for index, pair in enumerate(heard)}
    metadata = torch.full((len(heard), 2 + ids.shape[1]), -1, dtype=torch.int32)
    metadata[:, 0] = torch.tensor([rank * most + token for rank, token in heard], dtype=torch.int32)
    placed, ends, counts, place = [], [], [], 0
    for expert in range(low, low + local):
        place = -(-place // align) * align
        pairs = [(rank, *pair) for rank, one in enumerate(everyone) for pair in (one[2] == expert).nonzero().tolist()]
        for offset, (rank, token, slot) in enumerate(pairs[::order]):
            metadata[number[rank, token], 2 + slot] = place + offset
            placed.append((place + offset, rank, token, slot))
        place += len(pairs)
        ends.append(place)
        counts.append(len(pairs))
    length = -(-place // align) * align
    got = torch.full((length, hidden), torch.nan).bfloat16().to(rows.dtype)
    got_sf = None if sf is None else torch.full((length, sf.shape[1]), torch.nan)
    factors = torch.full((length,), torch.nan)
    for row, rank, token, slot in placed:
        got.view(torch.uint8)[row] = everyone[rank][0].view(torch.uint8)[token]
        factors[row] = everyone[rank][3][token, slot]
        if got_sf is not None:
            got_sf[row] = everyone[rank][1][token]
    numbers = torch.tensor([ends, counts], dtype=torch.int32)
    return Received(got, got_sf, factors, metadata, numbers[0], numbers[1])


def combine(group: Any, rows: Tensor, metadata: Tensor, most: int, tokens: int, bias: Tensor | None) -> Tensor:
    """[tokens, hidden]: every token's rows of all processes, added up once."""
    want(rows.dtype == torch.bfloat16 and rows.is_contiguous(), f"rows of {rows.dtype}")
    total = torch.zeros(tokens, rows.shape[1])
    for theirs, known in group.exchange((rows, metadata)):
        for owner, _, *slots in known.tolist():
            if owner // most == group.rank():
                total[owner % most] += theirs[[slot for slot in slots if slot >= 0]].float().sum(0)
    if bias is not None:
        want(bias.dtype == torch.bfloat16 and bias.shape == total.shape and bias.is_contiguous(), f"bias {bias.dtype}")
        total += bias.float()
    return total.bfloat16()


class Runtime:
    """What the library's own Python calls: its compiled half. `communicator` is the group, there."""

    def __init__(self, rank: int, size: int, communicator: Any, *_: Any) -> None:
        self.group = communicator
        want((rank, size) == (self.group.rank(), self.group.size()), "another group")

    def get_logical_domain_size(self) -> tuple[int, int]:
        return 1, self.group.size()

    get_physical_domain_size = get_logical_domain_size

    def dispatch(
        self, x: Tensor, sf: Tensor | None, ids: Tensor, weights: Tensor, stats: Any, *rest: Any
    ) -> tuple[Any, ...]:
        cached, (most, experts, align, _, _), (_, _, away, _, copy, sync, expand, zero, major) = (
            rest[:10],
            rest[10:15],
            rest[15:],
        )
        want(stats is None and not any(one is not None for one in cached), "a cached handle")
        want(expand and sync and copy and not (away or zero or major), "another form")
        got = dispatch(self.group, x, sf, ids, weights, most, experts, align, order=-1)
        received, none = torch.tensor([len(got.metadata)], dtype=torch.int32), None
        numbers = (len(got.metadata), len(got.rows), got.counts.tolist(), received, got.ends, got.counts)
        return (got.rows, got.sf, none, got.weights, ids.clone(), *numbers, got.metadata, none, none, none, none)

    def combine(self, x: Tensor, weights: Any, bias: Any, more: Any, metadata: Tensor, ids: Tensor, *rest: Any) -> Any:
        want(weights is None and more is None and rest[-1] is True, "weights here, which the rows have")
        return combine(self.group, x, metadata, rest[4], len(ids), bias), None, None


def compiled() -> Any:
    """`deep_ep._C`, as far as the library's own Python asks for it here."""
    event = type("EventHandle", (), {})
    return SimpleNamespace(
        EventHandle=event,
        Config=type("Config", (), {}),
        topk_idx_t=torch.int64,
        init_jit=lambda *paths: None,
        ElasticBuffer=Runtime,
        calculate_elastic_buffer_size=lambda *sizes: 1 << 21,
    )


class OnHost:
    """`torch` for a module that names the device "cuda"."""

    cuda = SimpleNamespace(synchronize=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def arange(*ends: int, device: Any = None, **words: Any) -> Tensor:
        return torch.arange(*ends, **words)
