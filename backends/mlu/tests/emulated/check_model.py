"""The small checkpoint on `mlu` tensors: the CPU's tokens, and nothing crosses to the host inside a step."""

import os
from pathlib import Path

import pytest
import torch
from hal_emulators.device import host
from torch.nn import functional as F

import hal
from hal.batch import Batch
from hal.models.deepseek_v4 import DeepseekV4, Tokenizer
from hal.models.deepseek_v4.generate import generate

CHECKPOINT = Path(__file__).parents[4] / "examples" / "tiny-v4"
PROMPTS = ("x", "def f(x):")
NEWEST = os.environ.get("EMULATED_TORCH_MLU_OPS", "1.12.1") == "1.12.1"


def model(backend: str, dtype: str) -> DeepseekV4:
    return DeepseekV4.from_checkpoint(CHECKPOINT, backend=backend, dtype=dtype)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer.open(CHECKPOINT)
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def test_float32_gives_the_cpus_tokens(prompts: list[list[int]]) -> None:
    made = [generate(model(name, "float32"), prompts, max_new_tokens=24) for name in ("cpu", "mlu@emulated")]
    assert made[0] == made[1]


def test_bfloat16_gives_the_cpus_choices_up_to_ties(prompts: list[list[int]]) -> None:
    cpu, mlu = model("cpu", "bfloat16"), model("mlu@emulated", "bfloat16")
    with torch.inference_mode():
        texts = [a + b for a, b in zip(prompts, generate(cpu, prompts, max_new_tokens=24), strict=True)]
        for here, there in zip(cpu.logits(texts), mlu.logits(texts), strict=True):
            noise = (here - there.cpu()).square().mean().sqrt()
            best = here.topk(2).values
            changed = here.argmax(-1) != there.cpu().argmax(-1)
            assert noise < 0.2  # two bfloat16 passes of this checkpoint lie 0.1 apart
            assert ((best[:, 0] - best[:, 1])[changed] < 4 * noise).all()


@pytest.mark.skipif(not NEWEST, reason="older operators leave contracts to plain torch")
def test_vendor_operators_serve_the_model() -> None:
    plan = model("mlu@emulated", "bfloat16").plan
    kernels = [k.id for choice in plan.choices for part in (choice, *choice.parts) for k in part.kernels]
    assert [name for name in kernels if name.endswith(".torch")] == []


@pytest.mark.skipif(not NEWEST, reason="older operators leave contracts to plain torch")
def test_no_step_goes_to_the_host() -> None:
    mlu = model("mlu@emulated", "bfloat16")
    caches = mlu.caches(tokens=300, requests=2)
    one, two = caches.open(), caches.open()
    with torch.inference_mode():
        for spans in ([(one, 0, 150), (two, 0, 3)], [(one, 150, 151), (two, 3, 9)], [(two, 9, 10), (one, 151, 152)]):
            caches.reserve(spans)
            slots, starts, ends = zip(*spans, strict=True)
            lengths = [end - start for start, end in zip(starts, ends, strict=True)]
            batch = Batch.build(lengths, starts, slots, "mlu")
            ids = torch.arange(batch.tokens, device="mlu") % 500
            host.clear()
            logits = mlu.head_logits(mlu(ids, batch, caches))
            assert host.trips() == {}
            assert logits.isfinite().all().item()


def test_requantised_weights_lose_little(prompts: list[list[int]]) -> None:
    """Integers only where they are permitted; the text's loss then moves by less than a tenth of a nat, two in int4."""
    exact = model("mlu@emulated", "bfloat16")
    with hal.use(allow="unverified,requantize"):
        int8 = model("mlu@emulated", "bfloat16")
    with hal.use(allow="unverified,requantize,requantize4"):
        int4 = model("mlu@emulated", "bfloat16")
    assert (exact.numerics.linear, int8.numerics.linear) == ("fp8_block128", "w8a8_int8")
    for made, scheme in ((int8, "w8a8_int8"), (int4, "w4a8_int")):
        layer = made.layers[0].ffn.experts.w13
        assert (layer.scheme, layer.lossy) == (scheme, True)
        installed = os.environ.get("EMULATED_TORCH_MLU_OPS") != "none"
        assert any("mlu.experts.int8" in choice.winner for choice in made.plan.choices) is installed
    text = prompts[1] + generate(exact, prompts[1:], max_new_tokens=40)[0]
    wanted = torch.tensor(text[1:])
    with torch.inference_mode():
        losses = [F.cross_entropy(each.logits([text])[0].cpu()[:-1], wanted) for each in (exact, int8, int4)]
    assert abs(losses[1] - losses[0]) < 0.1
    assert abs(losses[2] - losses[0]) < 0.2
