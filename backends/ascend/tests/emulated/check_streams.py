"""The model's independent parts on several of torch_npu's streams: the same tokens, and every access ordered."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hal_emulators import streams
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hal.batch import Batch
from hal.models.deepseek_v4 import DeepseekV4, Tokenizer
from hal.models.deepseek_v4.generate import generate

CHIP = os.environ["EMULATED_CHIP"]
CHECKPOINT = Path(__file__).parents[4] / "examples" / "tiny-v4"


class Used(TorchDispatchMode):
    """On which of the device's streams operators were issued, and how many on each."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, Tensor) and each.device.type == "npu" for each in tree_leaves((args, kwargs))):
            stream = torch.npu.current_stream().stream_id
            self.operators[stream] = self.operators.get(stream, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model() -> DeepseekV4:
    return DeepseekV4.from_checkpoint(CHECKPOINT, backend=f"ascend:{CHIP}@emulated", dtype="bfloat16")


def beside(model: DeepseekV4, side: int) -> None:
    for block in (*model.layers, *model.mtp):
        block.attn.streams = block.ffn.streams = side


def generated(model: DeepseekV4) -> tuple[list[list[int]], dict[int, int]]:
    tokenizer = Tokenizer.open(CHECKPOINT)
    with Used() as used:
        made = generate(model, [tokenizer.encode("x"), tokenizer.encode("def f(x):")], max_new_tokens=8)
    return made, used.operators


def test_the_chip_has_side_streams_and_they_change_no_token(model: DeepseekV4) -> None:
    side = model.plan.target.streams
    assert side == 2
    tokens, used = generated(model)
    beside(model, 0)
    alone, one = generated(model)
    beside(model, side)
    assert tokens == alone
    assert (len(used), len(one)) == (1 + side, 1)
    assert min(used.values()) > 100  # none of them idles


def test_no_access_of_an_adapter_races(model: DeepseekV4) -> None:
    """A prompt, a chunk and a decoding step with one clock per stream; waits are all that orders them."""
    caches = model.caches(tokens=300, requests=2)
    one, two = caches.open(), caches.open()
    with torch.no_grad(), streams.races() as found:
        for spans in ([(one, 0, 150), (two, 0, 3)], [(one, 150, 151), (two, 3, 9)]):
            caches.reserve(spans)
            slots, starts, ends = zip(*spans, strict=True)
            lengths = [end - start for start, end in zip(starts, ends, strict=True)]
            batch = Batch.build(lengths, starts, slots, "npu")
            model(torch.arange(batch.tokens).to("npu") % 500, batch, caches)
    assert [str(race) for race in found] == []


def test_without_the_waits_they_would_race(model: DeepseekV4, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal.streams.Mark.wait", lambda _: None)
    caches = model.caches(tokens=300, requests=1)
    spans = [(caches.open(), 0, 150)]
    caches.reserve(spans)
    with torch.no_grad(), streams.races() as found:
        batch = Batch.build([150], [0], [spans[0][0]], "npu")
        model(torch.arange(batch.tokens).to("npu") % 500, batch, caches)
    assert found
