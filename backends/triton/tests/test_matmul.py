"""Quantisers and products of the Triton kernels against the references."""

import pytest
import torch
from hal_emulators import triton as emulator
from hal_triton import matmul
from hal_triton.kernels import bits
from triton_lab import close

from hal import formats
from hal.reference.matmul import matmul as reference

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def codec_kernel(x, e4m3, e2m1, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(e4m3 + i, bits.float32_to_e4m3(value), mask=i < n)
    tl.store(e2m1 + i, bits.float32_to_e2m1(tl.clamp(value, -6.0, 6.0)).to(tl.uint8), mask=i < n)


@triton.jit
def decode_kernel(codes, e4m3, e2m1, ue8m0, ue8m0_half, wide, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    code = tl.load(codes + i)
    tl.store(e4m3 + i, bits.e4m3_to_float32(code))
    tl.store(e2m1 + i, bits.e2m1_to_bfloat16(code))
    tl.store(ue8m0 + i, bits.ue8m0_to_float32(code))
    tl.store(ue8m0_half + i, bits.ue8m0_to_bfloat16(code))
    tl.store(wide + i, bits.e2m1_to_e4m3(code))


def test_every_code_is_decoded():
    codes = torch.arange(256, dtype=torch.uint8)
    out = [torch.zeros(256), torch.zeros(256, dtype=torch.bfloat16)] * 2
    e4m3, e2m1, scale, half = [o.clone() for o in out]
    wide = torch.zeros(256, dtype=torch.uint8)
    decode_kernel[(1,)](codes, e4m3, e2m1, scale, half, wide, 256)
    number = (codes & 0x7F) != 0x7F
    assert torch.equal(e4m3[number], codes.view(torch.float8_e4m3fn).float()[number])
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert torch.equal(e2m1.float(), torch.cat([table, -table])[(codes & 15).long()])
    assert torch.equal(wide.view(torch.float8_e4m3fn).float(), e2m1.float())
    powers = codes.view(torch.float8_e8m0fnu).float()
    assert torch.equal(scale[:255], powers[:255])
    assert torch.equal(half[:255].float(), powers[:255])


def test_encoders_round_to_nearest_even():
    """Every midpoint of the e4m3 grid and its neighbours, and random values."""
    grid = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (grid[1:] + grid[:-1]) / 2
    up = torch.tensor(float("inf"))
    x = torch.cat([grid, middle, middle.nextafter(up), middle.nextafter(-up), torch.linspace(0, 6, 4097)])
    x = torch.cat([x, -x, torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 20]).clamp(-448, 448)
    e4m3, e2m1 = torch.zeros(len(x), dtype=torch.uint8), torch.zeros(len(x), dtype=torch.uint8)
    codec_kernel[(triton.cdiv(len(x), 8192),)](x, e4m3, e2m1, len(x), 8192)
    assert torch.equal(e4m3, x.to(torch.float8_e4m3fn).view(torch.uint8))
    rounded = formats.codecs.ELEMENTS["e2m1"]
    wanted = formats.codecs.unpack_nibbles(rounded.encode(rounded.round(x.clamp(-6, 6).view(1, -1)))).flatten()
    assert torch.equal(e2m1, wanted)


@pytest.mark.parametrize("activation", formats.ACTIVATIONS[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(5, 256), (3, 200), (0, 128), (1, 640)], ids=str)
def test_quantisers_are_bit_exact(activation, dtype, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 3
    if len(x):
        x[0, :128] = 0
        x[-1, 32:64] *= 1e-6
        x[-1, -1] = 0.0
    x = x.to(dtype)
    codes, scales = matmul.quantize(x, activation=activation)
    wanted = formats.quantize(x, activation)
    assert (codes.dtype, scales.dtype) == (wanted.codes.dtype, wanted.scales.dtype)
    assert torch.equal(codes.view(torch.uint8), wanted.codes.view(torch.uint8))
    assert torch.equal(scales.float(), wanted.scales.float())


@pytest.mark.parametrize("activation", formats.ACTIVATIONS[1:])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_block_with_nan_reads_back_as_nan(activation, bad):
    x = torch.ones(2, 256)
    x[0, 200] = bad
    codes, scales = matmul.quantize(x, activation=activation)
    back = formats.Quantized(codes, scales, activation).dequantize()
    assert torch.equal(back.isnan(), formats.quantize(x, activation).dequantize().isnan())


PRODUCTS = [
    ("none", "bf16"),
    ("e4m3_128", "fp8_block128"),
    ("e4m3_64", "fp8_block128"),
    ("e4m3_128", "mxfp4"),
    ("e4m3_32", "mxfp4"),
    ("e2m1_32", "mxfp4"),
    ("none", "mxfp4"),
    ("e4m3_32", "mxfp8"),
    ("e4m3_128", "bf16"),
    ("int8_token", "w8a8_int8"),
]


@pytest.mark.parametrize("chip", ["sm80", "sm90", "sm100", "sm120"])
@pytest.mark.parametrize(("activation", "scheme"), PRODUCTS)
def test_products(activation, scheme, chip):
    emulator.activate(chip)
    g = torch.Generator().manual_seed(2)
    weight = formats.prepare(torch.randn(160, 384, generator=g), scheme)
    for rows in (0, 40) if chip == "sm90" else (3,):
        x = torch.randn(rows, 384, generator=g).bfloat16()
        got = matmul.matmul(x, weight, activation=activation)
        assert got.dtype == torch.bfloat16
        close(got, reference(x.double(), weight, activation=activation))


@pytest.mark.parametrize(("activation", "scheme"), PRODUCTS)
def test_ragged_products(activation, scheme):
    """Neither dimension is a multiple of a block or a tile."""
    g = torch.Generator().manual_seed(3)
    weight = formats.prepare(torch.randn(37, 200, generator=g), scheme)
    x = torch.randn(5, 200, generator=g).bfloat16()
    close(matmul.matmul(x, weight, activation=activation), reference(x.double(), weight, activation=activation))


def test_float32_scales():
    weight = formats.prepare(torch.randn(160, 384), "fp8_block128", scale_dtype=torch.float32)
    x = torch.randn(4, 384).bfloat16()
    for chip in ("sm80", "sm90"):
        emulator.activate(chip)
        close(matmul.matmul(x, weight, activation="e4m3_128"), reference(x.double(), weight, activation="e4m3_128"))
