"""`quant.quantize` and `quant.matmul`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hal_triton.kernels.codes import quantize_int8_kernel, quantize_kernel
from hal_triton.kernels.gemm import linear_kernel
from hal_triton.launch import as_bytes, launch, power_of_two, tiles
from hal_triton.tuning import Config, chip, config, native_fp8, native_mixed, native_scaled

if TYPE_CHECKING:
    from hal.formats import PackedWeight

FEW_ROWS = 32
"""Up to so many rows per weight a product only streams its weights."""


def block(activation: str) -> int:
    """Columns per scale of a quantiser; 0 where there is one scale per row, or none."""
    return int(activation.split("_")[1]) if activation.startswith("e") else 0


def empty_codes(
    rows: int, width: int, activation: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where a quantiser's codes and scales go, as `hal.formats.Quantized` types them."""
    if activation == "none":
        return torch.empty(rows, width, dtype=dtype, device=device), torch.empty(rows, 0, device=device)
    if activation == "int8_token":
        codes = torch.empty(rows, width, dtype=torch.int8, device=device)
        return codes, torch.empty(rows, 1, device=device)
    scales = torch.empty(rows, tiles(width, block(activation)), dtype=torch.uint8, device=device)
    if activation == "e2m1_32":
        return torch.empty(rows, width // 2, dtype=torch.uint8, device=device), scales.view(torch.float8_e8m0fnu)
    codes = torch.empty(rows, width, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    return codes, scales.view(torch.float8_e8m0fnu)


def quantize(x: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """`quant.quantize`: x[tokens, features] -> codes, scales; bit for bit `hal.formats.quantize`."""
    rows, width = x.shape
    codes, scales = empty_codes(rows, width, activation, x.dtype, x.device)
    x = x.contiguous()
    if activation == "int8_token":
        tile = power_of_two(width)
        launch(quantize_int8_kernel, rows, config("quantize-int8", chip()), x, codes, scales, rows, width, C=tile)
        return codes, scales
    tuned = config("quantize", chip())
    work = tiles(rows, tuned["R"]) * tiles(width, tuned["C"])
    launch(quantize_kernel, work, tuned, x, as_bytes(codes), as_bytes(scales), rows, width, ACTIVATION=activation)
    return codes, scales


def unit(activation: str, scheme: str, width: int) -> str:
    """Which multiplier the active chip has for a product (`hal_triton.kernels.gemm`)."""
    if scheme == "w8a8_int8" and activation == "int8_token":
        return "int8"
    if scheme == "fp8_block128" and activation == "e4m3_128" and native_fp8(chip()):
        return "fp8"
    if scheme in ("mxfp4", "mxfp8") and activation.startswith("e4m3") and native_scaled(chip()) and width % 128 == 0:
        return "scaled" if scheme == "mxfp8" or native_mixed(chip()) else "widened"
    return "bf16"


def product_config(kernel: str, how: str, size: str) -> Config:
    """The configuration of a product on the active chip; "widened" operands make "scaled" products."""
    return config(f"{kernel}-{'scaled' if how == 'widened' else how}-{size}", chip())


def operand(codes: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and scales as the product takes them: bytes, int8 or values; ue8m0 as bytes or float32."""
    values = codes.contiguous() if codes.dtype in (torch.bfloat16, torch.int8) else as_bytes(codes)
    if scales is None or scales.numel() == 0:
        return values, values
    return values, scales.contiguous() if scales.dtype == torch.float32 else as_bytes(scales)


def matmul(x: Tensor, weight: PackedWeight, *, activation: str) -> Tensor:
    """`quant.matmul`: x[tokens, features] -> y[tokens, outputs] in the dtype of x.

    Without quantisation it is torch's own product.
    """
    if activation == "none" and weight.scheme == "bf16":
        return F.linear(x, weight.codes)
    codes, scales = (x, None) if activation == "none" else quantize(x, activation=activation)
    return linear(codes, scales, activation, weight, x.dtype)


def linear(codes: Tensor, scales: Tensor | None, activation: str, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Quantised rows times a packed weight transposed: [rows, outputs] in `dtype`."""
    rows, (outputs, width) = len(codes), weight.shape
    out = torch.empty(rows, outputs, dtype=dtype, device=codes.device)
    how = unit(activation, weight.scheme, width)
    tuned = product_config("linear", how, "small" if rows <= FEW_ROWS else "large")
    a, a_scales = operand(codes, scales)
    w, w_scales = operand(weight.codes, weight.scales)
    row_tiles = tiles(rows, tuned["BM"])
    launch(
        linear_kernel,
        row_tiles * tiles(outputs, tuned["BN"]),
        tuned,
        a,
        a_scales,
        w,
        w_scales,
        out,
        out,
        out,
        out,
        rows,
        row_tiles,
        outputs,
        width,
        0,
        0,
        A="bf16" if scales is None else activation,
        W=weight.scheme,
        UNIT=how,
        GROUPED=False,
        EVEN=width % tuned["BK"] == 0,
    )
    return out
