"""The arithmetic the judge is built on, against numpy and against experiment."""

import numpy as np
import pytest
import torch

from hal.numerics.rounding import accumulation, relative_rounding, rounded, storage_noise, ulp, unit_roundoff

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulp_is_numpys_spacing(dtype):
    x = np.abs(np.random.default_rng(0).standard_cauchy(1000)).astype(dtype)
    got = ulp(torch.from_numpy(x.astype(np.float64)), getattr(torch, np.dtype(dtype).name))
    assert np.array_equal(got.numpy(), np.spacing(x).astype(np.float64))


def test_ulp_at_the_ends_of_the_range():
    assert ulp(torch.tensor(0.0), torch.float16) == 2.0**-24  # smallest subnormal
    assert ulp(torch.tensor(0.0), torch.bfloat16) == 2.0**-126  # subnormals may be flushed
    assert ulp(torch.tensor(torch.inf), torch.float16) == 32
    assert ulp(torch.tensor(2.0), torch.bfloat16) == 2.0**-6
    assert ulp(torch.tensor(1.999), torch.bfloat16) == 2.0**-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rounding_is_as_large_as_the_model_says(dtype):
    x = torch.exp2(8 * torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    error = x.to(dtype).double() - x
    assert (error / storage_noise(x, dtype)).square().mean().sqrt() == pytest.approx(1, abs=0.02)
    assert (error / x).square().mean().sqrt() == pytest.approx(relative_rounding(dtype), rel=0.02)
    assert (error / x).abs().max() <= unit_roundoff(dtype)


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.2, 3.0])
def test_requantising_a_perturbation(noise):
    rng = torch.Generator().manual_seed(2)
    x = 100 * torch.rand(400_000, dtype=torch.float64, generator=rng)
    moved = x + noise * torch.randn(x.shape, dtype=torch.float64, generator=rng)
    spread = (moved.round() - x.round()).square().mean().sqrt()
    predicted = rounded(torch.tensor(noise), torch.tensor(1.0))
    assert 0.93 <= predicted / spread <= 1.05


def test_accumulation_covers_every_order_of_summation():
    rng = torch.Generator().manual_seed(3)
    products = torch.randn(200, 8192, generator=rng)
    exact = products.double().sum(1)
    total = torch.zeros(200)
    for k in range(products.shape[1]):  # the least accurate order: one after another
        total = total + products[:, k]
    noise = accumulation(8192) * torch.maximum(products.double().norm(dim=1), exact.abs())
    assert ((total.double() - exact) / noise).square().mean().sqrt() < 1
