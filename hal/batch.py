"""A ragged, packed batch: which request, position and slot each token has.

Tokens of all requests lie behind each other without padding; prefill, chunked prefill and decode are the same thing
with other lengths. Kernels that need index lists, block tables or a vendor's metadata compute them once per step with
`Batch.derive` and share them over all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from hal.derived import derived
from hal.errors import ContractError

__all__ = ["Batch", "Entries"]

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Entries:
    """Compressed entries that a batch completes, packed in batch order.

    Attributes:
        request: int64 [entries], row of the batch's requests.
        index: int64 [entries], number of the entry within its request: window `index` holds its tokens
            `index*ratio .. index*ratio + ratio-1`.
        cu: int32 [requests + 1], where each request's entries begin.
        positions: int64 [entries], first position of the entry's window, `index * ratio`.
    """

    request: Tensor
    index: Tensor
    cu: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """New tokens of some requests. Build one with `Batch.build`.

    Attributes:
        lengths: host, new tokens of each request; zero is legal.
        starts: host, position of each request's first new token, 0-based.
        cu_seqlens: int32 [requests + 1], where each request's tokens begin.
        positions: int64 [tokens], absolute position of each token.
        request: int64 [tokens], row of the token's request.
        slots: int64 [requests], where the request lives in caches and states.
    """

    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    cu_seqlens: Tensor
    positions: Tensor
    request: Tensor
    slots: Tensor

    @classmethod
    def build(
        cls,
        lengths: Iterable[int],
        starts: Iterable[int],
        slots: Iterable[int],
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Build a batch from host numbers, one of each per request.

        Raises:
            ContractError: counts differ, a number is negative, or two requests share a slot.
        """
        lengths, starts, slots = tuple(lengths), tuple(starts), tuple(slots)
        _check(lengths, starts, slots)
        positions = [torch.arange(start, start + length) for length, start in zip(lengths, starts, strict=True)]
        request = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
        return cls(
            lengths,
            starts,
            _prefix_sums(lengths).to(device),
            torch.cat([torch.empty(0, dtype=torch.int64), *positions]).to(device),
            request.to(device),
            torch.tensor(slots, dtype=torch.int64).to(device),
        )

    @property
    def tokens(self) -> int:
        """New tokens of all requests."""
        return sum(self.lengths)

    @property
    def requests(self) -> int:
        """Number of requests, those without new tokens included."""
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.positions.device

    def entries(self, ratio: int) -> Entries:
        """Entries of `ratio` tokens whose last token is in this batch."""
        return self.derive(("entries", ratio), lambda: self._entries(ratio))

    def visible(self, ratio: int) -> Tensor:
        """int64 [tokens]: how many entries of its request a token sees, the one it completes included."""
        return self.derive(("visible", ratio), lambda: torch.div(self.positions + 1, ratio, rounding_mode="floor"))

    def derive(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """`make()`, computed once per batch and key. Say in the key whose it is: `("cuda", "window rows", 128)`."""
        return derived(self, key, make)

    def _entries(self, ratio: int) -> Entries:
        first = [start // ratio for start in self.starts]
        last = [(start + length) // ratio for length, start in zip(self.lengths, self.starts, strict=True)]
        counts = [end - begin for begin, end in zip(first, last, strict=True)]
        index = torch.cat([torch.empty(0, dtype=torch.int64), *map(torch.arange, first, last)]).to(self.device)
        request = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        return Entries(request.to(self.device), index, _prefix_sums(counts).to(self.device), index * ratio)


def _prefix_sums(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)


def _check(lengths: Sequence[int], starts: Sequence[int], slots: Sequence[int]) -> None:
    if not len(lengths) == len(starts) == len(slots):
        counts = f"{len(lengths)} lengths, {len(starts)} starts and {len(slots)} slots"
        raise ContractError(f"a batch got {counts}", where="Batch.build", fix="give one of each per request")
    if min((*lengths, *starts, *slots), default=0) < 0:
        raise ContractError(
            f"a batch got a negative number: lengths {lengths}, starts {starts}, slots {slots}",
            where="Batch.build",
            fix="lengths, starts and slots count from zero",
        )
    if len(set(slots)) != len(slots):
        raise ContractError(
            f"two requests of one batch share a slot: {slots}",
            where="Batch.build",
            fix="give every running request a slot of its own",
        )
