"""Runs of rows, copied page by page, against rows read one by one."""

from __future__ import annotations

import pytest
import torch

from hal.cache import KVCache
from hal.formats.codecs import ELEMENTS
from hal.layouts import layout
from hal.layouts.sizes import LAYOUTS


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_of_rows_is_its_rows(name: str) -> None:
    """Across pages, inside one, empty, through unmapped pages and beyond the block table."""
    kind = layout(name, 128, 16, rope_dim=64)
    apart = torch.zeros(9, 2, *kind.allocate(1).shape[1:], dtype=kind.allocate(1).dtype)
    for pages in (kind.allocate(9), apart[:, 0]):  # side by side, and further apart than they are long
        table = torch.randperm(9, generator=torch.Generator().manual_seed(0)).int()[:8].view(2, 4)
        table[1, 2] = -1
        cache = KVCache(kind, pages, table)
        cache.write(torch.randn(9 * 16, 128), torch.arange(9 * 16))
        for low, high in ((0, 64), (5, 9), (20, 20), (30, 50), (60, 70)):
            row = torch.arange(low, high)
            one_by_one = cache.read(cache.physical(torch.ones_like(row), row))
            assert torch.equal(cache.read_run(1, low, high), one_by_one)
            assert torch.equal(cache.read_run(torch.tensor(1), low, high), one_by_one)


def test_e4m3_codes_decode_as_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128).view(torch.float8_e4m3fn)
    decoded = ELEMENTS["e4m3"].decode(codes)
    torch.testing.assert_close(decoded, codes.to(torch.float32), rtol=0, atol=0, equal_nan=True)
