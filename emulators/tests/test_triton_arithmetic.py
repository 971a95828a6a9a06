"""The repaired interpreter against torch, code by code."""

import math

import pytest
import torch
import triton
import triton.language as tl

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
SMALL = [torch.float8_e4m3fn, torch.float8_e5m2]


@triton.jit
def cast_kernel(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n).to(target.dtype.element_ty), mask=i < n)


@triton.jit
def arithmetic_kernel(x, y, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    b = tl.load(y + i)
    if OP == "add":
        c = a + b
    elif OP == "sub":
        c = a - b
    elif OP == "mul":
        c = a * b
    elif OP == "neg":
        c = -a
    elif OP == "fma":
        c = tl.fma(a, b, a)
    elif OP == "clamp":
        c = tl.clamp(a, b, b)
    elif OP == "where":
        c = tl.where(a < b, a, b)
    elif OP == "max":
        c = tl.maximum(a, b)
    tl.store(out + i, c)


@triton.jit
def dot_kernel(x, y, out, K: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    k = tl.arange(0, K)
    a = tl.load(x + i[:, None] * K + k[None, :])
    b = tl.load(y + k[:, None] * 16 + i[None, :])
    if out.dtype.element_ty == tl.int32:
        c = tl.dot(a, b, out_dtype=tl.int32)
    else:
        c = tl.dot(a, b, input_precision=PRECISION)
    tl.store(out + i[:, None] * 16 + i[None, :], c)


@triton.jit
def reduce_kernel(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    tile = tl.load(x + r[:, None] * COLUMNS + c[None, :])
    tl.store(out + r, tl.sum(tile, 1))
    tl.store(out + ROWS + r, tl.max(tile, 1).to(out.dtype.element_ty))
    tl.store(out + 2 * ROWS + r, tl.min(tile, 1).to(out.dtype.element_ty))


@triton.jit
def scaled_dot_kernel(x, w, scale, out, K: tl.constexpr):
    i = tl.arange(0, 16)
    k = tl.arange(0, K)
    a = tl.load(x + i[:, None] * K + k[None, :])
    b = tl.load(w + i[None, :] * (K // 2) + tl.arange(0, K // 2)[:, None])
    s = tl.load(scale + i[:, None] * (K // 32) + tl.arange(0, K // 32)[None, :])
    tl.store(out + i[:, None] * 16 + i[None, :], tl.dot_scaled(a, None, "bf16", b, s, "e2m1"))


def every_code(dtype: torch.dtype) -> torch.Tensor:
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype)
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=dtype)
    cast_kernel[(triton.cdiv(x.numel(), 8192),)](x, out, x.numel(), 8192)
    return out


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Equal bit for bit, NaN payloads aside."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    nan = x.float().isnan()
    return torch.equal(nan, y.float().isnan()) and torch.equal(x.view(kind)[~nan], y.view(kind)[~nan])


@pytest.mark.parametrize("target", FLOATS, ids=str)
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, *SMALL], ids=str)
def test_every_code_casts_as_in_torch(source, target):
    x = every_code(source)
    assert same_bits(cast(x, target), x.to(target))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, *SMALL], ids=str)
def test_float32_rounds_to_nearest_even(target):
    """All midpoints between neighbours of the target, both sides of each, and random bit patterns."""
    codes = every_code(target).float()
    codes = codes[codes.isfinite()].sort().values
    middle = ((codes[1:].double() + codes[:-1].double()) / 2).float()
    around = torch.cat([middle, middle.nextafter(torch.tensor(math.inf)), middle.nextafter(torch.tensor(-math.inf))])
    patterns = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(0)).int()
    x = torch.cat([around, patterns.view(torch.float32), torch.tensor([math.inf, -math.inf, math.nan, -0.0])])
    assert same_bits(cast(x, target), x.to(target))


@pytest.mark.parametrize("source", [torch.int32, torch.int8, torch.uint8], ids=str)
def test_integers_become_bfloat16(source):
    x = torch.arange(-(2**15), 2**15).to(source)
    assert same_bits(cast(x, torch.bfloat16), x.to(torch.bfloat16))


def test_bfloat16_becomes_integer():
    x = torch.randn(512).mul(100).bfloat16()
    assert torch.equal(cast(x, torch.int32), x.to(torch.int32))


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "neg", "fma", "clamp", "where", "max"])
def test_bfloat16_arithmetic_rounds_once(operation):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(256, generator=g).bfloat16(), torch.randn(256, generator=g).bfloat16()
    out = torch.zeros_like(x)
    arithmetic_kernel[(1,)](x, y, out, operation, 256)
    a, b = x.double(), y.double()
    exact = {"add": a + b, "sub": a - b, "mul": a * b, "neg": -a, "fma": a * b + a, "clamp": b, "max": a.maximum(b)}
    expected = exact.get(operation, a.minimum(b)).to(torch.bfloat16)
    assert same_bits(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, *SMALL], ids=str)
def test_dot_multiplies_values(dtype):
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(16, 64, generator=g).to(dtype), torch.randn(64, 16, generator=g).to(dtype)
    out = torch.zeros(16, 16)
    dot_kernel[(1,)](x, y, out, 64, "ieee")
    torch.testing.assert_close(out.double(), x.double() @ y.double(), rtol=1e-5, atol=1e-5)


def test_dot_of_int8_is_exact():
    x = torch.randint(-128, 128, (16, 64), dtype=torch.int8)
    y = torch.randint(-128, 128, (64, 16), dtype=torch.int8)
    out = torch.zeros(16, 16, dtype=torch.int32)
    dot_kernel[(1,)](x, y, out, 64, "ieee")
    assert torch.equal(out, (x.double() @ y.double()).int())


def test_float32_dot_loses_bits_unless_told_otherwise():
    """NVIDIA's matrix units read float32 as tf32: 10 fraction bits."""
    x = torch.full((16, 16), 1 + 2.0**-12)
    y = torch.eye(16)
    results = {}
    for precision in ("ieee", "tf32"):
        out = torch.zeros(16, 16)
        dot_kernel[(1,)](x, y, out, 16, precision)
        results[precision] = out[0, 0].item()
    assert results == {"ieee": 1 + 2.0**-12, "tf32": 1.0}


def test_reductions_of_bfloat16():
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    out = torch.zeros(24, dtype=torch.bfloat16)
    reduce_kernel[(1,)](x, out, 8, 64)
    assert torch.allclose(out[:8].double(), x.double().sum(1), rtol=2**-8)
    assert torch.equal(out[8:16], x.amax(1))
    assert torch.equal(out[16:], x.amin(1))


def test_scaled_dot_keeps_the_range_of_bfloat16():
    """2**20 does not fit float16, which the stock interpreter goes through."""
    x = torch.full((16, 32), 2.0**20, dtype=torch.bfloat16)
    w = torch.full((16, 16), 0x22, dtype=torch.uint8)  # every nibble is 1.0
    scale = torch.full((16, 1), 126, dtype=torch.uint8)  # 0.5
    out = torch.zeros(16, 16)
    scaled_dot_kernel[(1,)](x, w, scale, out, 32)
    assert torch.equal(out, torch.full((16, 16), 32 * 2.0**19))
