"""The expert-parallel group: what operators may ask of the processes that share experts.

`Group` is opaque on purpose. A vendor's adapter takes `process_group` to find its own communicator; references need
only `rank`, `size` and `all_to_all`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hal.errors import ContractError
from hal.indexing import take

__all__ = ["Exchange", "Group", "TorchGroup"]


class Group(Protocol):
    """Processes that share experts."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def process_group(self) -> Any:
        """The `torch.distributed` group behind it, for vendors' fused operators; None where there is none."""

    def all_to_all(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send the first `sent[0]` rows to process 0, the next `sent[1]` to process 1 and so on.

        Returns:
            [sum(received), ...], the `received[r]` rows of process `r` behind those of process `r-1`.
        """


@dataclass(frozen=True)
class TorchGroup:
    """A `torch.distributed` process group of any backend that has `all_to_all_single`.

    Rows travel as bytes: collectives of several vendors know no FP8 types.
    """

    process_group: Any = None

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank(self.process_group)

    @property
    def size(self) -> int:
        return torch.distributed.get_world_size(self.process_group)

    def all_to_all(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        data = rows.contiguous().view(len(rows), math.prod(rows.shape[1:])).view(torch.uint8)
        got = data.new_empty(sum(received), data.shape[1])
        torch.distributed.all_to_all_single(got, data, list(received), list(sent), group=self.process_group)
        return got.view(rows.dtype).view(len(got), *rows.shape[1:])


@dataclass(frozen=True, eq=False)
class Exchange:
    """One exchange of rows over a group, and its way back.

    Attributes:
        group: the processes.
        sent, received: rows to and from each process.
        order: int64 [rows], where row `i`, grouped by local expert, stood when it arrived.
        counts: int64 [local experts], rows per expert of this process.
    """

    group: Group
    sent: tuple[int, ...]
    received: tuple[int, ...]
    order: Tensor
    counts: Tensor

    @classmethod
    def plan(cls, group: Group, counts: Tensor) -> Exchange:
        """Tell every process how many rows it gets; `counts` int64 [experts], this process's rows of each expert."""
        if len(counts) % group.size:
            raise ContractError(
                f"{len(counts)} experts do not divide among {group.size} processes",
                where="moe.dispatch",
                fix="take a group whose size divides the number of experts",
            )
        outgoing = counts.view(group.size, -1)
        one = [1] * group.size
        incoming = group.all_to_all(outgoing, one, one)
        expert = torch.arange(incoming.shape[1], device=counts.device).repeat(group.size)
        order = expert.repeat_interleave(incoming.flatten()).argsort(stable=True)
        sent, received = outgoing.sum(1).tolist(), incoming.sum(1).tolist()
        return cls(group, tuple(sent), tuple(received), order, incoming.sum(0))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows sorted by expert of all processes -> rows of this process's experts, grouped by them."""
        return take(self.group.all_to_all(rows, self.sent, self.received), self.order)

    def backward(self, rows: Tensor) -> Tensor:
        """Rows of this process's experts -> rows as `forward` was given them."""
        return self.group.all_to_all(take(rows, self.order.argsort()), self.received, self.sent)
