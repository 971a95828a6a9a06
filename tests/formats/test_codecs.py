"""Every code of every element, and the scale rule, against ml_dtypes, torch and the definitions written out by hand."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hal.formats import quantize, simulate
from hal.formats.codecs import ELEMENTS, ceil_ue8m0, pack_nibbles, unpack_nibbles

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_all_e4m3_codes_decode_as_ml_dtypes_does() -> None:
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    got = ELEMENTS["e4m3"].decode(torch.from_numpy(codes).view(torch.float8_e4m3fn)).numpy()
    assert np.array_equal(got, wanted, equal_nan=True)
    assert np.array_equal(np.signbit(got), np.signbit(wanted))


@pytest.mark.parametrize(
    ("name", "kind", "largest"), [("e4m3", "float8_e4m3fn", 448.0), ("e2m1", "float4_e2m1fn", 6.0)]
)
def test_rounding_is_that_of_ml_dtypes(name: str, kind: str, largest: float) -> None:
    """All bf16 numbers that the format holds: every tie of both grids is among them."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(torch.float32)
    values = every[every.abs() <= largest]
    wanted = values.numpy().astype(getattr(ml_dtypes, kind)).astype(np.float32)
    got = ELEMENTS[name].round(values).numpy()
    assert np.array_equal(got, wanted)
    assert np.array_equal(np.signbit(got), np.signbit(wanted))


def test_nibbles_are_e2m1_and_the_low_one_is_first() -> None:
    values = torch.tensor([[*E2M1, *(-v for v in E2M1)]])
    codes = ELEMENTS["e2m1"].encode(values)
    assert codes.tolist() == [[low | (low + 1) << 4 for low in range(0, 16, 2)]]
    back = ELEMENTS["e2m1"].decode(codes)
    assert torch.equal(back, values)
    assert torch.equal(torch.signbit(back), torch.signbit(values))


@given(st.lists(st.integers(0, 15), min_size=2, max_size=64).filter(lambda codes: len(codes) % 2 == 0))
def test_nibbles_there_and_back(codes: list[int]) -> None:
    assert unpack_nibbles(pack_nibbles(torch.tensor(codes, dtype=torch.uint8))).tolist() == codes


@given(st.floats(2.0**-126, 2.0**126, width=32))
def test_scales_are_the_next_power_of_two(x: float) -> None:
    mantissa, exponent = math.frexp(x)  # x = mantissa * 2^exponent, mantissa in [0.5, 1)
    power = exponent - 1 if mantissa == 0.5 else exponent
    assert ceil_ue8m0(torch.tensor([x])).view(torch.uint8).item() == power + 127


def test_scales_are_exact_next_to_powers_of_two() -> None:
    for power in range(-125, 127):
        exact = torch.tensor([2.0**power])
        above = torch.nextafter(exact, torch.tensor(torch.inf))
        assert ceil_ue8m0(exact).view(torch.uint8).item() == power + 127
        assert ceil_ue8m0(above).view(torch.uint8).item() == power + 128


def by_hand(block: np.ndarray, kind: type, largest: float, floor: float) -> np.ndarray:
    """A block through the rule as the official inference code states it, in numpy."""
    amax = np.float32(max(np.abs(block).max(), np.float32(floor)))
    mantissa, exponent = np.frexp(np.float32(amax * np.float32(1 / largest)))
    scale = np.float32(2.0) ** np.float32(exponent - 1 if mantissa == 0.5 else exponent)
    return (block / scale).astype(kind).astype(np.float32) * scale


@pytest.mark.parametrize(
    ("name", "length", "kind", "largest", "floor"),
    [
        ("e4m3_128", 128, ml_dtypes.float8_e4m3fn, 448, 1e-4),
        ("e4m3_64", 64, ml_dtypes.float8_e4m3fn, 448, 1e-4),
        ("e4m3_32", 32, ml_dtypes.float8_e4m3fn, 448, 1e-4),
        ("e2m1_32", 32, ml_dtypes.float4_e2m1fn, 6, 6 * 2.0**-126),
    ],
)
@pytest.mark.parametrize("spread", [0.0, 3.0, 12.0])
def test_activation_quantisers_follow_the_rule(
    name: str, length: int, kind: type, largest: float, floor: float, spread: float
) -> None:
    random = np.random.default_rng(7)
    x = (random.standard_normal((16, 256)) * np.exp(spread * random.standard_normal((16, 256)))).astype(np.float32)
    x[0] = 0.0
    x[1, :128] = 1e-30
    blocks = x.reshape(16, -1, length)
    wanted = np.stack([[by_hand(block, kind, largest, floor) for block in row] for row in blocks]).reshape(x.shape)
    stored = quantize(torch.from_numpy(x), name)
    assert np.array_equal(stored.dequantize().numpy(), wanted)
    assert np.array_equal(simulate(torch.from_numpy(x), name).numpy(), wanted)
    assert stored.scales.dtype == torch.float8_e8m0fnu
    assert tuple(stored.scales.shape) == (16, 256 // length)


def test_int8_tokens_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 127.0, 63.5], [0.0, 0.0, 0.0, 0.0]])
    stored = quantize(x, "int8_token")
    assert stored.codes.tolist() == [[1, -2, 127, 64], [0, 0, 0, 0]]
    assert stored.scales[0].item() == 1.0


@pytest.mark.parametrize("name", ["e4m3_64", "e2m1_32", "int8_token"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_block_with_infinity_or_nan_is_nan_and_no_other(name: str, bad: float) -> None:
    x = torch.ones(2, 128)
    x[0, 5] = bad
    back = quantize(x, name).dequantize()
    length = {"e4m3_64": 64, "e2m1_32": 32, "int8_token": 128}[name]
    assert back[0, :length].isnan().all()
    assert not back[0, length:].isnan().any()
    assert not back[1].isnan().any()


def test_hifloat8_grid_by_its_tables() -> None:
    """Exponents and mantissa bits of arXiv 2409.16626, table 1: all positive finite values."""
    positive = {2.0 ** (m - 23) for m in range(1, 8)}
    for exponents, bits in (([0], 3), ([-1, 1], 3), ([-3, -2, 2, 3], 3), ([*range(-7, -3), *range(4, 8)], 2)):
        positive |= {2.0**e * (1 + m / 2**bits) for e in exponents for m in range(2**bits)}
    positive |= {2.0**e * (1 + m / 2) for e in [*range(-15, -7), *range(8, 16)] for m in range(2)} - {1.5 * 2.0**15}
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    decoded = ELEMENTS["hif8"].decode(codes)
    finite = decoded[decoded.isfinite()]
    assert {float(v) for v in finite if v > 0} == positive
    assert {-float(v) for v in finite if v < 0} == positive
    kept = finite[finite.abs() <= 15]
    assert torch.equal(ELEMENTS["hif8"].round(kept), kept)
