"""The portable Triton kernels on `mlu` tensors: the same sources as on CUDA, one program per core, one warp each."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", minversion="3.9.0", reason="the repaired interpreter is triton 3.9.0's")

import hal_triton.attention
import hal_triton.compression
import hal_triton.experts
import hal_triton.matmul
import hal_triton.selection
from hal_emulators.triton import arithmetic, fresh, memory, switch
from hal_plain import attention, compression, experts, matmul, selection
from hal_triton import launch
from hal_triton.tuning import chip, config, table
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from hal import Batch, KVCache, StateCache
from hal.formats import prepare
from hal.layouts import layout
from hal.rope import Rope

LENGTHS, STARTS, SLOTS = [5, 0, 1, 40], [0, 3, 70, 20], [2, 0, 3, 1]
CORES = 8
GRIDS: list[tuple[int, ...]] = []
VALUES: list[int] = []
NRAM = 327680
"""Bytes of a core's memory that a kernel of the 500 series may use."""


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Interpret kernels as for an MLU of `CORES` cores, checked for races, bounds and unwritten memory."""
    switch.interpret(GPUTarget("mlu", 592, 0))
    arithmetic.repair()
    memory.install()
    fresh.install()
    launch.limit_programs(CORES)
    run = InterpretedFunction.run

    def recorded(self: InterpretedFunction, *arguments: object, grid: tuple[int, ...], **words: object) -> None:
        GRIDS.append(tuple(grid))
        run(self, *arguments, grid=grid, **words)

    checked = TensorHandle.__post_init__

    def measured(self: TensorHandle) -> None:
        checked(self)
        if not self.dtype.is_ptr():
            VALUES.append(self.data.size * self.dtype.primitive_bitwidth // 8)

    InterpretedFunction.run, TensorHandle.__post_init__ = recorded, measured
    yield
    InterpretedFunction.run, TensorHandle.__post_init__ = run, checked
    launch.limit_programs(1 << 30)
    fresh.remove()
    switch.compile_again()


def batch() -> Batch:
    return Batch.build(LENGTHS, STARTS, SLOTS, "mlu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to("mlu")


def cache(rows: int, width: int, seed: int) -> KVCache:
    made = KVCache.allocate(layout("rows_bf16", width, 16), 4, rows, "mlu")
    made.pages.copy_(normal(*made.pages.shape, seed=seed))
    return made


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.cpu().float(), wanted.cpu().float(), rtol=2**-7, atol=2**-6)


def test_every_configuration_has_one_warp_and_no_pipeline() -> None:
    assert chip() == "mlu"
    for kernel in table():
        assert (config(kernel, "mlu").warps, config(kernel, "mlu").stages) == (1, 1)


def test_attention() -> None:
    step, q, sink = batch(), normal(46, 8, 512, seed=1), normal(8, seed=2).float()
    words = {"scale": 512**-0.5, "window_size": 32, "ratio": 4}
    arguments = (q, cache(80, 512, 3), cache(24, 512, 4), None, sink, step)
    for got, wanted in zip(
        hal_triton.attention.attend(*arguments, **words), attention.attend(*arguments, **words), strict=True
    ):
        close(got, wanted)


def test_selection() -> None:
    rope = Rope(64, 10000.0)
    arguments = (normal(46, 32, 128, seed=5), normal(46, 32, seed=6), rope, batch(), cache(24, 128, 7))
    words = {"top_k": 4, "ratio": 4, "hadamard": True, "scale": 128**-0.5}
    got, wanted = (side(*arguments, **words).cpu() for side in (hal_triton.selection.select, selection.select))
    same = [set(a.tolist()) == set(b.tolist()) for a, b in zip(got, wanted, strict=True)]
    assert sum(same) >= 44  # scores a rounding apart may change places


def test_compression() -> None:
    step, kv, score = batch(), normal(46, 256, seed=8).float(), normal(46, 256, seed=9).float()
    ape = normal(4, 256, seed=10).float()
    states = [StateCache.allocate(4, 4, True, 128, "mlu") for _ in range(2)]
    sides = (hal_triton.compression.compress_pool, compression.compress_pool)
    got, wanted = (
        side(kv, score, ape, step, state, ratio=4, overlap=True) for side, state in zip(sides, states, strict=True)
    )
    close(got, wanted)
    ends = [start + length for start, length in zip(step.starts, step.lengths, strict=True)]
    for slot, end in zip(step.slots.tolist(), ends, strict=True):
        kept = torch.arange(max(0, end // 4 * 4 - 4), end) % states[0].tensor.shape[1]  # what later windows need
        close(states[0].tensor.cpu()[slot, kept], states[1].tensor.cpu()[slot, kept])


def test_experts() -> None:
    generator = torch.Generator().manual_seed(11)
    ids = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(20)]).int().to("mlu")
    weights = torch.rand(20, 2, generator=generator).to("mlu")
    w13, w2 = (prepare(torch.randn(8, *shape, generator=generator) * 0.1, "bf16") for shape in ((128, 128), (128, 64)))
    results = []
    for side in (hal_triton.experts, experts):
        sent = side.dispatch(normal(20, 128, seed=12), ids, weights, None, experts=8, activation="none")
        rows = side.experts(sent, w13.to("mlu"), w2.to("mlu"), clamp=10.0, activation="none")
        results.append(side.combine(rows, sent, None))
    close(*results)


def test_products() -> None:
    weight = prepare(torch.randn(96, 256, generator=torch.Generator().manual_seed(13)), "w8a8_int8").to("mlu")
    x = normal(33, 256, seed=14)
    sides = (hal_triton.matmul.matmul, matmul.matmul)
    got, wanted = (side(x, weight, activation="int8_token") for side in sides)
    torch.testing.assert_close(got.cpu().float(), wanted.cpu().float(), rtol=2**-7, atol=2**-4)


def test_grids_never_exceed_the_cores() -> None:
    assert len(GRIDS) > 10
    assert max(grid[0] for grid in GRIDS) == CORES
    assert all(size == 1 for grid in GRIDS for size in grid[1:])


def test_no_value_is_larger_than_a_cores_memory() -> None:
    """What is live at once is the compiler's business; a value that does not fit alone could never run."""
    assert len(VALUES) > 1000
    assert 1 << 14 < max(VALUES) <= NRAM // 2
