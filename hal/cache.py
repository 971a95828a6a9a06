"""Paged caches with a named layout, and the state of compressors between steps.

Nothing here is ever cleared: a row is only read where a position says that its request wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hal.layouts import Layout

__all__ = ["KVCache", "StateCache"]


@dataclass(frozen=True, eq=False)
class KVCache:
    """Pages of one layout, and which page each block of each request's rows is in.

    Attributes:
        layout: how a page stores its rows.
        pages: [blocks, ...], the layout's own bytes.
        block_table: int32 [slots, blocks per slot], page of each block of rows, -1 where none is mapped. Row `j` of the
            request in slot `s` is row `j % block_size` of page `block_table[s, j // block_size]`.
    """

    layout: Layout
    pages: Tensor
    block_table: Tensor

    @classmethod
    def allocate(cls, layout: Layout, slots: int, rows_per_slot: int, device: torch.device | str = "cpu") -> KVCache:
        """A cache in which every slot owns its pages for good, one behind the other."""
        blocks = max(1, -(-rows_per_slot // layout.block_size))
        table = torch.arange(slots * blocks, dtype=torch.int32, device=device).view(slots, blocks)
        return cls(layout, layout.allocate(slots * blocks, device), table)

    @property
    def bytes(self) -> int:
        """Device bytes of all pages."""
        return self.pages.nbytes

    def physical(self, slots: Tensor, rows: Tensor) -> Tensor:
        """Physical rows (page * block_size + offset) of rows of requests; -1 where a row is -1 or not mapped.

        Args:
            slots: int64 [n], the rows' requests.
            rows: integers [n], rows of those requests.

        Returns:
            int64 [n].
        """
        size, blocks = self.layout.block_size, self.block_table.shape[1]
        rows = rows.to(torch.int64)
        inside = (rows >= 0) & (rows < blocks * size)
        rows = rows.where(inside, 0)
        page = self.block_table[slots, rows // size].to(torch.int64)
        return torch.where(inside & (page >= 0), page * size + rows % size, -1)

    def write(self, values: Tensor, physical: Tensor) -> None:
        """Quantise and store `values` [n, head_dim] at physical rows (int64 [n]); -1 is skipped."""
        self.layout.write(self.pages, values, physical)

    def read(self, physical: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantised rows [n, head_dim] at physical rows (int64 [n]); zeros for -1."""
        return self.layout.read(self.pages, physical, dtype)

    def read_run(self, slot: int | Tensor, low: int, high: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dequantised rows `low..high-1` of the request in `slot`: [high - low, head_dim]; zeros where none is mapped.

        As `read` of their physical rows, but a page is looked up and copied as a whole.
        """
        size = self.layout.block_size
        first = low // size
        table = self.block_table[slot] if isinstance(slot, int) else self.block_table.index_select(0, slot.view(1))[0]
        page = table[first : -(-high // size)].to(torch.int64)
        rows = self.layout.read_pages(self.pages, page, dtype)[low - first * size : high - first * size]
        beyond = high - low - len(rows)
        return torch.cat([rows, rows.new_zeros(beyond, rows.shape[1])]) if beyond else rows

    def canonical(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Every row of every page, dequantised: [blocks, block_size, head_dim]."""
        size = self.layout.block_size
        rows = torch.arange(self.pages.shape[0] * size, device=self.pages.device)
        return self.read(rows, dtype).view(-1, size, self.layout.head_dim)


@dataclass(frozen=True, eq=False)
class StateCache:
    """Tokens that compressors have seen but that later windows still need, one state per slot.

    Attributes:
        tensor: float32 [slots, coff*ratio, 2*width], `width = coff*head_dim`, `coff` 2 with overlap, else 1. The token
            at position `p` is in row `p % (coff*ratio)`: its projected value first, its score (ape included) second.
    """

    tensor: Tensor

    @classmethod
    def allocate(
        cls,
        slots: int,
        ratio: int,
        overlap: bool,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StateCache:
        """States of `slots` requests. Their first content does not matter."""
        coff = 2 if overlap else 1
        return cls(torch.zeros(slots, coff * ratio, 2 * coff * head_dim, dtype=dtype, device=device))

    @property
    def kv(self) -> Tensor:
        """View of the projected values, [slots, coff*ratio, width]."""
        return self.tensor[..., : self.tensor.shape[-1] // 2]

    @property
    def score(self) -> Tensor:
        """View of the scores, [slots, coff*ratio, width]."""
        return self.tensor[..., self.tensor.shape[-1] // 2 :]

    @property
    def bytes(self) -> int:
        """Device bytes of all states."""
        return self.tensor.nbytes
