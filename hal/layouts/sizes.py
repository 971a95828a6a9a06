"""Where the bytes of a cache page are. No torch: planning counts bytes with it, layouts address pages with it.

A page holds `block_size` rows. Every part of a row is a field: row `j` has it at `offset + j * stride` of its page.
The data of a row lie side by side, trailers come behind the data of all rows of the page.

| layout | data of a row | trailer, per row | row | page |
|---|---|---|---|---|
| `rows_f64`, `rows_f32`, `rows_bf16` | values | | 4096, 2048, 1024 | |
| `rows_bf16_fp8`, `index_bf16_mxfp4` | bf16 values | | 1024, 256 | |
| `v4_584` | 448 e4m3 codes, 64 bf16 | 7 ue8m0 and a spare byte | 584 | up to a multiple of 576 |
| `v4_640` | 64 bf16, 448 e4m3 codes, 7 ue8m0, spare up to a multiple of 128 | | 640 | |
| `index_fp8_132` | 128 e4m3 codes | float32 scale | 132 | |
| `index_mxfp4_68` | 128 e2m1 codes | 4 ue8m0 | 68 | |
| `index_int8_130` | 128 int8 codes | float16 scale | 130 | |

Bytes are those of DeepSeek-V4: 512 channels, the last 64 with RoPE; 128 for `index_*`. Sources: FlashMLA's
`tests/quant.py` (MODEL1, 584 bytes and the page's padding), DeepGEMM's and vLLM's indexer caches (132 and 68),
vllm-ascend's DeepSeek-V4 caches (640 and 130).
"""

from __future__ import annotations

from dataclasses import dataclass

from hal.errors import ContractError, UnknownName

__all__ = ["LAYOUTS", "Field", "Sizes", "sizes"]

TILE = 64  # channels of a v4 row that share a scale
_PLAIN = {"rows_f64": 8, "rows_f32": 4, "rows_bf16": 2, "rows_bf16_fp8": 2, "index_bf16_mxfp4": 2}

LAYOUTS = (*_PLAIN, "v4_584", "v4_640", "index_fp8_132", "index_mxfp4_68", "index_int8_130")
"""Names of all layouts."""


@dataclass(frozen=True)
class Field:
    """One part of every row: row `j` of a page has `bytes` of it at `offset + j * stride`."""

    name: str
    bytes: int
    offset: int
    stride: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of one row, padding inside the row included, of one page, page padding included, and the fields."""

    row_bytes: int
    page_bytes: int
    fields: tuple[Field, ...]


def sizes(name: str, head_dim: int, block_size: int, rope_dim: int = 64) -> Sizes:
    """Byte counts of layout `name`.

    Args:
        head_dim: channels of a row.
        block_size: rows of a page.
        rope_dim: last channels of a row that carry RoPE, for layouts that store them apart.

    Raises:
        UnknownName: no such layout.
        ContractError: rows that the layout cannot hold.
    """
    if name not in LAYOUTS:
        raise UnknownName(f"no cache layout is called {name!r}", where="layout", fix=f"use one of {', '.join(LAYOUTS)}")
    _check(name, head_dim, block_size, rope_dim)
    if name in _PLAIN:
        return _sizes(block_size, [("values", _PLAIN[name] * head_dim)])
    codes, rope = ("codes", head_dim - rope_dim), ("rope", 2 * rope_dim)
    tiles = (head_dim - rope_dim) // TILE
    if name == "v4_584":
        data = codes[1] + rope[1]
        return _sizes(block_size, [codes, rope], ("scales", tiles), spare=-tiles % 8, page_multiple=data)
    if name == "v4_640":
        used = rope[1] + codes[1] + tiles
        return _sizes(block_size, [rope, codes, ("scales", tiles)], spare=-used % 128)
    if name == "index_fp8_132":
        return _sizes(block_size, [("codes", head_dim)], ("scales", 4))
    if name == "index_mxfp4_68":
        return _sizes(block_size, [("codes", head_dim // 2)], ("scales", head_dim // 32))
    return _sizes(block_size, [("codes", head_dim)], ("scales", 2))


def _sizes(
    block_size: int,
    data: list[tuple[str, int]],
    trailer: tuple[str, int] | None = None,
    spare: int = 0,
    page_multiple: int = 1,
) -> Sizes:
    """Fields of a page; `spare` bytes end each row's trailer, or each row where there is none."""
    stride = sum(width for _, width in data) + (0 if trailer else spare)
    fields, offset = [], 0
    for field, width in data:
        fields.append(Field(field, width, offset, stride))
        offset += width
    row_bytes = stride
    if trailer:
        fields.append(Field(*trailer, offset=block_size * stride, stride=trailer[1] + spare))
        row_bytes += trailer[1] + spare
    page = block_size * row_bytes
    return Sizes(row_bytes, page + -page % page_multiple, tuple(fields))


def _check(name: str, head_dim: int, block_size: int, rope_dim: int) -> None:
    wrong = ""
    if head_dim < 1 or block_size < 1:
        wrong = "at least one channel and one row per page"
    elif name.startswith("v4_") or name == "rows_bf16_fp8":
        if head_dim <= rope_dim or (head_dim - rope_dim) % TILE:
            wrong = f"a multiple of {TILE} channels in front of the {rope_dim} with RoPE"
    elif "mxfp4" in name and head_dim % 32:
        wrong = "a multiple of 32 channels"
    elif name == "index_fp8_132" and (head_dim > 128 or head_dim % 4):
        wrong = "at most 128 channels, a multiple of 4: a row has one scale"
    elif name == "index_int8_130" and head_dim % 2:
        wrong = "an even number of channels"
    if wrong:
        raise ContractError(
            f"rows of {head_dim} channels, {block_size} a page, do not fit {name}: it takes {wrong}",
            where="layout",
            fix="use one of the plain layouts rows_f64, rows_f32, rows_bf16",
        )
