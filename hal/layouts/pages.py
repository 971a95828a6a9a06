"""Cache layouts: what a page of a KV cache holds, down to the byte, and how rows get in and out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hal.errors import ContractError
from hal.layouts.rows import RowCodec, row_codec
from hal.layouts.sizes import Sizes, sizes

__all__ = ["Layout", "convert", "layout"]


@dataclass(frozen=True)
class Layout:
    """How a page stores `block_size` rows of `head_dim` channels; make one with `layout`.

    Pages are one tensor: [blocks, block_size, head_dim] for layouts of plain rows, uint8 [blocks, page_bytes] for the
    others. Pages may lie further apart than they are long (`pages.stride(0)`); each must be contiguous. A physical row
    is `page * block_size + row of the page`.

    Law: `read(write(x)) == quantize_rows(x)`, bit for bit. Only `write` makes or changes bytes; spare bytes are never
    read or written.
    """

    name: str
    head_dim: int
    block_size: int
    rope_dim: int = 64

    def __post_init__(self) -> None:
        _ = self.sizes  # refuses what the layout cannot hold

    @cached_property
    def sizes(self) -> Sizes:
        """Byte counts and the place of every field."""
        return sizes(self.name, self.head_dim, self.block_size, self.rope_dim)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, scales and padding included; page padding not."""
        return self.sizes.row_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, padding included."""
        return self.sizes.page_bytes

    @property
    def _codec(self) -> RowCodec:
        return row_codec(self.name)

    @property
    def _page_shape(self) -> tuple[int, ...]:
        return (self.page_bytes,) if self._codec.element == torch.uint8 else (self.block_size, self.head_dim)

    @property
    def index_activation(self) -> str:
        """The quantiser that `attn.select` applies to queries of rows in this layout."""
        return self._codec.index_activation

    def allocate(self, blocks: int, device: torch.device | str = "cpu") -> Tensor:
        """Pages full of zeros."""
        return torch.zeros(blocks, *self._page_shape, dtype=self._codec.element, device=device)

    def write(self, pages: Tensor, values: Tensor, physical: Tensor) -> None:
        """Quantise rows and store them, in place. Plain rows keep the autograd graph.

        Args:
            pages: of this layout.
            values: floats [n, head_dim].
            physical: int64 [n], distinct physical rows; -1 is skipped.
        """
        keep = physical >= 0
        if not physical.is_cpu:
            self._write_unseen(pages, values, physical, keep)
            return
        if not keep.all():
            values, physical = values[keep], physical[keep]
        views, place = self.views(pages), self._place(physical)
        for name, field in self._codec.encode(values, self.rope_dim).items():
            views[name].index_put_(place, field)

    def _write_unseen(self, pages: Tensor, values: Tensor, physical: Tensor, keep: Tensor) -> None:
        """As `write`, while only the device knows what is kept: what is skipped repeats a row that is."""
        if not (len(pages) and len(keep)):
            return
        chosen = torch.arange(len(keep), device=keep.device).where(keep, keep.int().argmax())
        views, place = self.views(pages), self._place(physical[chosen].clamp(min=0))
        for name, field in self._codec.encode(values[chosen], self.rope_dim).items():
            views[name].index_put_(place, field.where(keep.any(), views[name][place]))

    def read(self, pages: Tensor, physical: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows at `physical` (int64 [n]), dequantised: [n, head_dim] in `dtype`; zeros where it is -1."""
        missing = physical < 0
        if not len(pages):
            return torch.zeros(len(physical), self.head_dim, dtype=dtype, device=pages.device)
        at = physical.clamp(min=0)
        fields = {name: self._rows(view, at) for name, view in self.views(pages).items()}
        rows = self._codec.decode(fields, dtype)
        return rows.masked_fill(missing.unsqueeze(-1), 0) if _may_be(missing) else rows

    def read_pages(self, pages: Tensor, page: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """All rows of the pages numbered `page` (int64 [n]), one page behind the other: [n * block_size, head_dim].

        As `read`, but whole pages are copied at once. Zeros where a number is -1.
        """
        if not len(pages):
            return torch.zeros(len(page) * self.block_size, self.head_dim, dtype=dtype, device=pages.device)
        chosen = self.views(pages.index_select(0, page.clamp(min=0)))
        rows = self._codec.decode(chosen, dtype)
        missing = page < 0
        rows = rows.masked_fill(missing.view(-1, 1, 1), 0) if _may_be(missing) else rows
        return rows.flatten(0, 1)

    def quantize_rows(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What reading `values` [n, head_dim] back in `dtype` gives: float64 for `rows_f64`, else float32."""
        dtype = dtype or (torch.float64 if self._codec.element == torch.float64 else torch.float32)
        return self._codec.decode(self._codec.encode(values, self.rope_dim), dtype)

    def _rows(self, view: Tensor, physical: Tensor) -> Tensor:
        """Rows [n, ..] of a view [blocks, block_size, ..]."""
        if view.stride(0) == self.block_size * view.stride(1):
            return view.flatten(0, 1).index_select(0, physical)
        return view[self._place(physical)]

    def _place(self, physical: Tensor) -> tuple[Tensor, Tensor]:
        return physical // self.block_size, physical % self.block_size

    def views(self, pages: Tensor) -> dict[str, Tensor]:
        """Every field of every row, sharing memory with the pages: for kernels that write bytes themselves.

        Returns:
            uint8 [blocks, block_size, bytes] by the names of `sizes.fields`; for plain rows "values", the pages.

        Raises:
            ContractError: the pages are not of this layout.
        """
        element, shape = self._codec.element, self._page_shape
        if pages.dtype != element or tuple(pages.shape[1:]) != shape or not pages[:1].is_contiguous():
            raise ContractError(
                f"pages of {pages.dtype} {list(pages.shape)} are not {element} [blocks, {', '.join(map(str, shape))}], "
                "each contiguous",
                where=f"layout {self.name}",
                fix="allocate them with Layout.allocate",
            )
        if element != torch.uint8:
            return {"values": pages}
        start, apart = pages.storage_offset(), pages.stride(0)
        rows = len(pages), self.block_size
        return {
            field.name: pages.as_strided((*rows, field.bytes), (apart, field.stride, 1), start + field.offset)
            for field in self.sizes.fields
        }


def layout(name: str, head_dim: int, block_size: int, rope_dim: int = 64) -> Layout:
    """The layout `name` for rows of `head_dim` channels, `block_size` of them a page.

    Args:
        rope_dim: last channels of a row that carry RoPE; matters to `v4_584`, `v4_640` and `rows_bf16_fp8` only.

    Raises:
        UnknownName: no such layout.
        ContractError: rows that the layout cannot hold.
    """
    return Layout(name, head_dim, block_size, rope_dim)


def convert(source: Layout, pages: Tensor, target: Layout) -> Tensor:
    """All rows of `pages` in another layout: new pages of `target`.

    Goes through the rows' values, so it changes them only as far as `target` cannot hold them. A physical row keeps its
    number: block tables stay valid if both layouts have the same `block_size`.

    Raises:
        ContractError: the layouts' rows have different channels.
    """
    if (source.head_dim, source.rope_dim) != (target.head_dim, target.rope_dim):
        raise ContractError(
            f"rows of {source.head_dim} channels, {source.rope_dim} with RoPE, cannot become rows of "
            f"{target.head_dim} with {target.rope_dim}",
            where=f"convert {source.name} to {target.name}",
            fix="use layouts of the same head_dim and rope_dim",
        )
    rows = torch.arange(len(pages) * source.block_size, device=pages.device)
    new = target.allocate(-(-len(rows) // target.block_size), pages.device)
    dtype = torch.float64 if source.name == "rows_f64" else torch.float32
    target.write(new, source.read(pages, rows, dtype), rows)
    return new


def _may_be(mask: Tensor) -> bool:
    """Whether anything of a mask is set; taken for granted on a device, which is not waited for."""
    return not mask.is_cpu or bool(mask.any())
