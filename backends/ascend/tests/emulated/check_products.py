"""What this backend's products compute on one chip, judged by the contracts and against the CPU's model."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hal_ascend import cube, matmul
from hal_ascend import experts as vendor
from hal_ascend.kernels import kernels
from hal_ascend.quantization import BLOCKS, quantize_mx
from hal_emulators.cann.calls import log
from torch.nn.functional import cross_entropy

import hal
from hal.conformance.samples.experts import ffn_sample
from hal.conformance.samples.matmul import matmul_sample
from hal.dispatched import Dispatched
from hal.formats import PackedWeight, prepare, quantize
from hal.kernel import Kernel
from hal.models.deepseek_v4 import DeepseekV4, Tokenizer
from hal.models.deepseek_v4.generate import generate
from hal.numerics import Precision
from hal.numerics.contracts import expect
from hal.policy import Policy
from hal.reference.experts import experts
from hal.selection import target_of

CHIP = os.environ["EMULATED_CHIP"]
MX = CHIP == "a5"
ROOT = Path(__file__).parents[4]
H, N, E = 256, 128, 8


@pytest.mark.skipif(not MX, reason="this chip has no e4m3")
@pytest.mark.parametrize("activation", BLOCKS)
def test_blocks_of_zeros_and_infinities(activation: str) -> None:
    """What the operator does otherwise than the contract is put right; a block with a NaN reads back as NaN."""
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(4)).bfloat16()
    x[0], x[1, 3], x[2, 190], x[3], x[4] = 0, torch.inf, torch.nan, 1e-9, 448 * 2.0**-22
    codes, scales = quantize_mx(x.npu(), activation=activation)
    wanted = quantize(x, activation)
    assert torch.equal(scales.cpu().view(torch.uint8), wanted.scales.view(torch.uint8))
    got = replace(wanted, codes=codes.cpu(), scales=scales.cpu()).dequantize()
    torch.testing.assert_close(got, wanted.dequantize(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(MX, reason="this chip has no such product")
@pytest.mark.parametrize("wrong", ["", "bias", "scales", "codes"])
def test_int4_weights_and_their_sums(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel declares lets its float16 pass, and neither sums, groups nor outputs of another place."""
    sample = matmul_sample(7, 1024, 128, "w4a8_int_256", "int8_token", "bfloat16")
    x, weight = sample.arguments()
    stored = cube.int4(weight.to("npu"))
    rolled = {wrong: getattr(stored, wrong).roll(1, 0)} if wrong else {}
    monkeypatch.setattr(matmul, "int4", lambda weight: replace(stored, **rolled))
    (kernel,) = (each for each in chip_kernels() if each.id == "ascend.matmul.int4")
    y = kernel.load()(x.npu(), weight.to("npu"), activation="int8_token").cpu()
    judged = [
        expect("quant.matmul", (x, weight), dict(sample.attributes), precision).judge(y, (x, weight)).passed
        for precision in (Precision.of(kernel), None)
    ]
    assert judged == [not wrong, False]


@pytest.mark.skipif(MX, reason="this chip multiplies the published formats as they are")
def test_gates_inside_the_product_are_declared() -> None:
    """Nothing rounded before the second product: outside what is promised, inside what the kernel declares."""
    sample = ffn_sample(33, "w8a8_int8", "int8_token", "holes")
    (kernel,) = (each for each in chip_kernels() if each.id == "ascend.ffn.gated")
    given = [each.to("npu") if isinstance(each, (torch.Tensor, PackedWeight)) else each for each in sample.arguments()]
    with log() as called:
        y = kernel.load()(*given, **sample.attributes).cpu()
    assert {"aclnnMoeTokenPermute", "aclnnMoeTokenUnpermute"} <= set(called)
    judged = [
        expect("moe.ffn", sample.arguments(), dict(sample.attributes), precision).judge(y, sample.arguments()).passed
        for precision in (Precision.of(kernel), None)
    ]
    assert judged == [True, False]


def chip_kernels() -> list[Kernel]:
    with hal.use(backend=f"ascend:{CHIP}@emulated"):
        return kernels(target_of(Policy.current()))


def inside(weight: PackedWeight) -> PackedWeight:
    """The weight on the chip, its codes inside larger storage."""
    moved = weight.to("npu")
    return replace(moved, codes=torch.cat([torch.zeros_like(moved.codes[:1]), moved.codes])[1:])


@pytest.mark.parametrize("clamps", [True, False])
def test_experts_clamp(clamps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two grouped products and the gate between them agree with the contract, and would not without its clamp."""
    torch.manual_seed(0)
    scheme, activation = ("mxfp4", "e4m3_128") if MX else ("w8a8_int8", "int8_token")
    w13, w2 = prepare(torch.randn(E, 2 * N, H) / 16, scheme), prepare(torch.randn(E, H, N) / 11, scheme)
    x = quantize(torch.randn(9, H), activation)
    counts, index = torch.tensor([3, 0, 1, 0, 5, 0, 0, 0]), torch.arange(9).view(9, 1)
    sent = Dispatched(x.codes, x.scales, activation, torch.rand(9), counts, index, 9, 1, torch.bfloat16)
    moved = {name: getattr(sent, name).to("npu") for name in ("rows", "scales", "weights", "counts", "index")}
    if not clamps:
        whole = vendor.activated
        monkeypatch.setattr(vendor, "activated", lambda rows, weights, clamp, dtype: whole(rows, weights, 1e9, dtype))
    kernel = vendor.experts_mx if MX else vendor.experts_int8
    words = {"clamp": 0.5, "activation": activation}
    got = kernel(replace(sent, **moved), inside(w13), inside(w2), **words).float().cpu()
    apart = (got - experts(sent, w13, w2, **words).float()).square().mean().sqrt()
    assert bool(apart < 0.01) is clamps, apart


def test_the_small_checkpoint_gives_the_cpus_tokens() -> None:
    """No conversion loses anything here: e4m3 and FP4 are multiplied as they are, or in a wider type."""
    checkpoint = ROOT / "examples" / "tiny-v4"
    prompts = [Tokenizer.open(checkpoint).encode("x")]
    made = []
    for backend, dtype in (("cpu", "float32"), (f"ascend:{CHIP}@emulated", "bfloat16")):
        model = DeepseekV4.from_checkpoint(checkpoint, backend=backend, dtype=dtype)
        made.append(generate(model, prompts, max_new_tokens=8))
    assert made[0] == made[1]


@pytest.mark.skipif(MX, reason="this chip multiplies the published formats as they are")
def test_requantised_weights_lose_little_and_only_where_permitted() -> None:
    checkpoint, made = ROOT / "examples" / "tiny-v4", {}
    text = Tokenizer.open(checkpoint).encode("for i in range(10):\n    print(i)\n")
    for words in ("", "requantize", "requantize4", "requantize,requantize4"):
        with hal.use(allow=f"unverified,{words}"), torch.inference_mode():
            model = DeepseekV4.from_checkpoint(checkpoint, backend=f"ascend:{CHIP}@emulated", dtype="bfloat16")
            loss = cross_entropy(model.logits([text])[0].cpu().float()[:-1], torch.tensor(text[1:]))
            made[model.numerics.linear, model.numerics.experts] = float(loss)
    exact, int8, int4, both = made.values()
    assert list(made) == [
        ("fp8_block128", "mxfp4"),
        ("w8a8_int8", "w8a8_int8"),
        ("fp8_block128", "w4a8_int_256"),
        ("w8a8_int8", "w4a8_int_256"),
    ]
    assert abs(int8 - exact) < 0.1
    assert max(abs(int4 - exact), abs(both - exact)) < 0.3
    print(made)
