"""How each layout turns a row's values into the fields that a page stores, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hal.formats import Quantized, quantize, simulate

__all__ = ["RowCodec", "row_codec"]

Fields = Mapping[str, Tensor]


@dataclass(frozen=True)
class RowCodec:
    """One layout's rows.

    Attributes:
        encode: values [n, head_dim] and the number of channels with RoPE -> every field, [n, ..].
        decode: fields and the dtype wanted -> values [n, head_dim].
        element: dtype of a page's elements; uint8 for pages of bytes.
        index_activation: quantiser of the queries that meet these rows in `attn.select`.
    """

    encode: Callable[[Tensor, int], Fields]
    decode: Callable[[Fields, torch.dtype], Tensor]
    element: torch.dtype = torch.uint8
    index_activation: str = "none"


def row_codec(name: str) -> RowCodec:
    """The codec of layout `name`."""
    return _CODECS[name]


def _bytes(x: Tensor) -> Tensor:
    # Flat first: strides of a tensor without rows may be 0, of which torch takes no bytes.
    return x.flatten().view(torch.uint8).view(*x.shape[:-1], x.shape[-1] * x.element_size())


def _plain(dtype: torch.dtype) -> RowCodec:
    return RowCodec(lambda values, rope: {"values": values.to(dtype)}, _decode_plain, dtype)


def _decode_plain(fields: Fields, dtype: torch.dtype) -> Tensor:
    return fields["values"].to(dtype)


def _encode_bf16_fp8(values: Tensor, rope_dim: int) -> Fields:
    split = values.shape[-1] - rope_dim
    rows = torch.cat([simulate(values[:, :split], "e4m3_64"), values[:, split:]], dim=-1)
    return {"values": rows.to(torch.bfloat16)}


def _encode_bf16_mxfp4(values: Tensor, rope_dim: int) -> Fields:
    return {"values": simulate(values, "e2m1_32").to(torch.bfloat16)}


def _encode_v4(values: Tensor, rope_dim: int) -> Fields:
    split = values.shape[-1] - rope_dim
    nope = quantize(values[:, :split], "e4m3_64")
    rope = values[:, split:].detach().to(torch.bfloat16)
    return {"codes": _bytes(nope.codes), "scales": _bytes(nope.scales), "rope": _bytes(rope)}


def _decode_v4(fields: Fields, dtype: torch.dtype) -> Tensor:
    codes, scales = fields["codes"].view(torch.float8_e4m3fn), fields["scales"].view(torch.float8_e8m0fnu)
    nope = Quantized(codes, scales, "e4m3_64").dequantize(dtype)
    return torch.cat([nope, fields["rope"].view(torch.bfloat16).to(dtype)], dim=-1)


def _index(activation: str, codes: torch.dtype, scales: torch.dtype) -> RowCodec:
    """Rows of codes of one quantiser, its scales stored as `scales`."""

    def encode(values: Tensor, rope_dim: int) -> Fields:
        row = quantize(values, activation)
        return {"codes": _bytes(row.codes), "scales": _bytes(row.scales.to(scales))}

    def decode(fields: Fields, dtype: torch.dtype) -> Tensor:
        return Quantized(fields["codes"].view(codes), fields["scales"].view(scales), activation).dequantize(dtype)

    return RowCodec(encode, decode, index_activation=activation)


_CODECS = {
    "rows_f64": _plain(torch.float64),
    "rows_f32": _plain(torch.float32),
    "rows_bf16": _plain(torch.bfloat16),
    "rows_bf16_fp8": RowCodec(_encode_bf16_fp8, _decode_plain, torch.bfloat16),
    "v4_584": RowCodec(_encode_v4, _decode_v4),
    "v4_640": RowCodec(_encode_v4, _decode_v4),
    "index_fp8_132": _index("e4m3_128", torch.float8_e4m3fn, torch.float32),
    "index_mxfp4_68": _index("e2m1_32", torch.uint8, torch.float8_e8m0fnu),
    "index_bf16_mxfp4": RowCodec(_encode_bf16_mxfp4, _decode_plain, torch.bfloat16, "e2m1_32"),
    "index_int8_130": _index("int8_token", torch.int8, torch.float16),
}
