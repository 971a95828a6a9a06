"""The sanitizer on seeded bugs: each kernel below has exactly the fault its name says."""

import pytest
import torch
import triton
import triton.language as tl
from hal_emulators.triton import fresh, traffic
from hal_emulators.triton.memory import SanitizerError

N, BLOCK = 1000, 256


@triton.jit
def unmasked_load(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i), mask=i < n)


@triton.jit
def negative_index(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i - 1))


@triton.jit
def into_the_neighbour(x, out, n, BLOCK: tl.constexpr):
    """Reads `out` through a pointer to `x`: both lie in one storage."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + n + i))


@triton.jit
def write_write_race(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.program_id(0))


@triton.jit
def read_after_write_race(x, out, n, BLOCK: tl.constexpr):
    p = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    tl.store(out + p * BLOCK + i, tl.load(x + i), mask=p * BLOCK + i < n)
    previous = tl.load(out + tl.maximum(p - 1, 0) * BLOCK + i)
    tl.store(out + p * BLOCK + i, previous, mask=p * BLOCK + i < n)


@triton.jit
def write_after_read_race(x, out, n, BLOCK: tl.constexpr):
    """Shifts in place by one: program p reads the element that program p+1 overwrites."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(out + i + 1, mask=i + 1 < n)
    tl.store(out + i, value, mask=i + 1 < n)


@triton.jit
def plain_read_of_an_atomic(x, out, n, BLOCK: tl.constexpr):
    count = tl.load(out)
    tl.atomic_add(out, count + 1)


@triton.jit
def duplicate_store(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i // 2, tl.load(x + i))


@triton.jit
def accumulate_into_output(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n) + tl.load(out + i, mask=i < n)
    tl.store(out + i, value, mask=i < n)


@triton.jit
def last_block_forgotten(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    full = (tl.program_id(0) + 1) * BLOCK <= n
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=(i < n) & full)


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def histogram(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + tl.load(x + i, mask=i < n, other=0).to(tl.int32), 1.0, mask=i < n)


SEEDED = [
    (unmasked_load, "out of bounds"),
    (negative_index, "byte -4 of 'x'"),
    (write_write_race, "races on byte 0 of 'out', written by program 0"),
    (read_after_write_race, "load races"),
    (write_after_read_race, "read by program 0"),
    (plain_read_of_an_atomic, "atomic"),
    (duplicate_store, "duplicate addresses"),
]


@pytest.mark.parametrize(("kernel", "message"), SEEDED, ids=lambda value: getattr(value, "__name__", ""))
def test_seeded_bug_is_found(kernel, message):
    with pytest.raises(SanitizerError, match=message) as caught:
        kernel[(4,)](torch.randn(N), torch.zeros(N), N, BLOCK)
    assert kernel.__name__ in str(caught.value)


def test_pointer_keeps_its_tensor():
    both = torch.zeros(2 * BLOCK)
    with pytest.raises(SanitizerError, match=r"out of bounds.*'x'"):
        into_the_neighbour[(1,)](both[:BLOCK], both[BLOCK:], BLOCK, BLOCK)


def test_uninitialised_read_is_found():
    with pytest.raises(SanitizerError, match=r"nobody wrote.*'out'"):
        accumulate_into_output[(4,)](torch.randn(N), torch.empty(N), N, BLOCK)


def test_memory_that_torch_wrote_is_initialised():
    out = torch.empty(N)
    out.zero_()
    x = torch.randn(N)
    accumulate_into_output[(4,)](x, out, N, BLOCK)
    assert torch.equal(out, x)


@pytest.mark.parametrize(("kernel", "missing"), [(copy, 0), (last_block_forgotten, 4 * (N % BLOCK))])
def test_unwritten_output_is_counted(kernel, missing):
    out = torch.empty(N)
    kernel[(4,)](torch.randn(N), out, N, BLOCK)
    assert fresh.unwritten(out) == missing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.uint8], ids=str)
def test_good_kernels_pass(dtype):
    x = torch.arange(N).to(dtype)
    out = torch.empty_like(x)
    copy[(4,)](x, out, N, BLOCK)
    assert torch.equal(out, x)


def test_atomics_by_several_programs_are_no_race():
    out = torch.zeros(8)
    histogram[(4,)](torch.arange(N).remainder(8).float(), out, N, BLOCK)
    assert torch.equal(out, torch.full((8,), N / 8))


def test_traffic_counts_each_sector_once():
    x, out = torch.zeros(4096), torch.empty(4096)
    with traffic.count() as ledger:
        copy[(16,)](x, out, 4096, BLOCK)
        write = ledger.kernels["copy"]
    assert (write.launches, write.loaded, write.stored) == (1, 4 * 4096, 4 * 4096)
    assert abs(ledger.moved - 8 * 4096) <= 2 * 32
    assert ledger.requested == 8 * 4096
