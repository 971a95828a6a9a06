"""What crosses between torch and XLA: the same memory, or a copy that is counted; and codes that agree to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("jax")

from hal_jax.exchange import COPIES, array, bucket, tensor
from hal_jax.matmul import _matmul, matmul, quantize

from hal.errors import ContractError
from hal.formats import ACTIVATIONS, prepare
from hal.formats import quantize as wanted_codes


@pytest.fixture(autouse=True)
def _counted_from_zero() -> Iterator[None]:
    COPIES.clear()
    yield
    COPIES.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_same_memory(dtype: torch.dtype) -> None:
    x = torch.arange(64.0).view(8, 8).to(dtype)
    there = array(x)
    back = tensor(there, dtype=dtype)
    assert there.unsafe_buffer_pointer() == x.data_ptr() == back.data_ptr()
    assert not COPIES


def test_copies_are_counted_by_reason() -> None:
    x = torch.randn(8, 16)
    array(x, 8)
    assert not COPIES
    assert array(x[:5], 8).shape == (8, 16)
    array(x[:, :4])
    array(x.flatten()[1:])
    array(torch.arange(4))
    assert dict(COPIES) == {"bucket": 5 * 64, "strides": 8 * 16, "alignment": 127 * 4, "int64": 16}


def test_float64_is_refused() -> None:
    with pytest.raises(ContractError, match="float64"):
        array(torch.zeros(4, dtype=torch.float64))


def test_decode_recompiles_once_per_bucket() -> None:
    weight = prepare(torch.randn(128, 128), "fp8_block128")
    matmul(torch.randn(5, 128), weight, activation="e4m3_128")
    before = _matmul._cache_size()
    for tokens in (5, 6, 7, 8):
        matmul(torch.randn(tokens, 128), weight, activation="e4m3_128")
    assert _matmul._cache_size() == before
    matmul(torch.randn(9, 128), weight, activation="e4m3_128")
    assert _matmul._cache_size() == before + 1


def test_buckets() -> None:
    assert [bucket(count) for count in (0, 1, 2, 3, 8, 9)] == [1, 1, 2, 4, 8, 16]


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_codes_agree_to_the_bit(activation: str) -> None:
    """Over forty binades, ties and a block of zeros included: XLA's shortcuts change no code."""
    torch.manual_seed(0)
    x = torch.randn(64, 256) * torch.exp2(torch.randint(-20, 20, (64, 256)).float())
    x[1], x[2], x[3, 7] = 0.0, (torch.arange(256.0) - 128) / 16, torch.inf
    codes, scales = quantize(x, activation=activation)
    want = wanted_codes(x, activation)
    assert torch.equal(scales.view(torch.uint8), want.scales.view(torch.uint8)) or torch.equal(
        scales.float().nan_to_num(-1), want.scales.float().nan_to_num(-1)
    )
    sound = torch.arange(64) != 3  # codes under a scale of NaN are free
    assert torch.equal(codes.view(torch.uint8)[sound], want.codes.view(torch.uint8)[sound])
