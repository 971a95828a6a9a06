"""The small checkpoint makes no host round trip on this chip, by the runtime's count and by the suite's watch."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hal_ascend.target import watched
from hal_emulators.cann import host

from hal.batch import Batch
from hal.layouts import layout as layout_of
from hal.models.deepseek_v4 import DeepseekV4, Tokenizer
from hal.models.deepseek_v4.generate import generate

CHIP = os.environ["EMULATED_CHIP"]
CHECKPOINT = Path(__file__).parents[4] / "examples" / "tiny-v4"


@pytest.fixture(scope="module")
def model() -> DeepseekV4:
    return DeepseekV4.from_checkpoint(CHECKPOINT, backend=f"ascend:{CHIP}@emulated", dtype="bfloat16")


def test_no_step_goes_to_the_host(model: DeepseekV4) -> None:
    """Prompts in chunks, decoding, and both together."""
    caches = model.caches(tokens=300, requests=2)
    one, two = caches.open(), caches.open()
    with torch.no_grad():
        for spans in ([(one, 0, 150), (two, 0, 3)], [(one, 150, 151), (two, 3, 9)], [(two, 9, 10), (one, 151, 152)]):
            caches.reserve(spans)
            slots, starts, ends = zip(*spans, strict=True)
            lengths = [end - start for start, end in zip(starts, ends, strict=True)]
            batch = Batch.build(lengths, starts, slots, "npu")
            ids = torch.arange(batch.tokens).to("npu") % 500
            host.clear()
            with watched() as names:
                logits = model.head_logits(model(ids, batch, caches))
            assert (host.trips(), names) == ({}, [])
            assert logits.isfinite().all().item()


def test_generation_reads_the_tokens_it_chose_and_nothing_else(model: DeepseekV4) -> None:
    host.clear()
    made = generate(model, [Tokenizer.open(CHECKPOINT).encode("x")], max_new_tokens=8, stop=())
    assert len(made[0]) == 8
    assert host.trips() == {"copy to host": 8}


READS: dict[str, Callable[[torch.Tensor], object]] = {
    "one value": lambda x: x[0].item(),
    "a truth": lambda x: bool((x > 1).any()),
    "all values": lambda x: x.tolist(),
    "a copy": lambda x: x.cpu(),
    "a count": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 1],
    "lengths": lambda x: x.repeat_interleave(x.long()),
    "likeness": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_to_read_a_value_is_counted(read: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(3, device="npu")
    host.clear()
    with watched() as names:
        read(x)
    assert sum(host.trips().values()) == 1
    assert names


def test_what_stays_on_the_device_is_not_counted() -> None:
    x, index = torch.ones(3).to("npu"), torch.tensor([0, 2]).to("npu")
    host.clear()
    with watched() as names:
        x[index] = x[index] * 2
        x.where(x > 1, 0).repeat_interleave(2).sort()
    assert (host.trips(), names) == ({}, [])


@pytest.mark.parametrize("kept", [[0, 5, 7], [3, -1, 7], [-1, -1, -1], []], ids=str)
def test_rows_are_skipped_without_a_look_at_them(kept: list[int]) -> None:
    layout, rows = layout_of("rows_bf16", 8, 4), torch.tensor(kept, dtype=torch.int64)
    values = torch.randn(len(kept), 8)
    here, there = layout.allocate(2), layout.allocate(2).to("npu")
    layout.write(here, values, rows)
    host.clear()
    layout.write(there, values.to("npu"), rows.to("npu"))
    read = layout.read(there, rows.to("npu"))
    assert host.trips() == {}
    assert torch.equal(there.cpu(), here)
    assert torch.equal(read.cpu(), layout.read(here, rows))
