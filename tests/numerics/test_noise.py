"""The noise model against honest kernels of every small shape and kind of data, and against the references' algebra."""

import pytest
import torch

from hal.batch import Batch
from hal.cache import KVCache
from hal.conformance.samples.matmul import matmul_sample
from hal.dispatched import Dispatched
from hal.formats import prepare, simulate
from hal.layouts import layout
from hal.numerics import Precision, Sums, declared, judge_sums
from hal.numerics.contracts import expect
from hal.numerics.experts import expert_rows
from hal.numerics.noise import matmul_noise, softmax_sum
from hal.numerics.quantisers import grid_step
from hal.reference.attention import attend
from hal.reference.experts import experts
from tools.planted.attention import Case, Fault, merged, one_pass, online
from tools.planted.matmul import blocked, fp8_tensor_core, tensor_core

F64 = torch.float64

DATA = {
    "normal": lambda x: x,
    "ones": torch.ones_like,
    "positive": torch.abs,
    "sparse": lambda x: x * (x > 1),
    "tiny": lambda x: x * 2.0**-12,
    "integers": torch.round,
    "equal rows": lambda x: x[:1].expand_as(x).clone(),
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_no_honest_product_of_any_shape_is_rejected(dtype, kind):
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        m, n, k = (int(torch.randint(1, high, (), generator=rng)) for high in (20, 40, 300))
        a, b = (DATA[kind](torch.randn(rows, k, generator=rng)).to(dtype).float() for rows in (m, n))
        exact = a.double() @ b.double().mT
        noise = matmul_noise(a, b, exact, declared(dtype))
        want = Sums(exact, noise, dtype, (a @ b.mT).to(dtype), noise)
        for total in (a @ b.mT, blocked(a, b, 16), blocked(a, b, 8, reverse=True), tensor_core(a, b), exact):
            verdict = judge_sums(total.to(dtype), want)
            assert verdict, f"{m} x {k} x {n}: {verdict.text}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["normal", "sharp", "offset", "no scores"])
def test_no_honest_attention_of_any_shape_is_rejected(dtype, kind):
    rng = torch.Generator().manual_seed(1)
    for _ in range(25):
        tokens, heads, dim, n = (
            int(torch.randint(low, high, (), generator=rng)) for low, high in ((1, 5), (1, 9), (1, 70), (1, 150))
        )
        q, rows = torch.randn(tokens, heads, dim, generator=rng), torch.randn(tokens, n, dim, generator=rng)
        q = q * {"sharp": 8, "no scores": 0}.get(kind, 1)
        rows = rows + 3 if kind == "offset" else rows
        seen = torch.rand(tokens, n, generator=rng) < 0.7
        seen[:, 0] = True
        case = Case(q.to(dtype), rows.to(dtype), seen, torch.randn(heads, generator=rng) * 3, dim**-0.5, dtype)
        found = softmax_sum(case.q, case.rows, seen, case.sink, case.scale, declared(dtype))
        wants = (
            Sums(found.out, found.out_noise, dtype, one_sided=found.out_one_sided),
            Sums(found.lse, found.lse_noise, torch.float32, one_sided=found.lse_noise),
        )
        kernels = [online(case, 16), online(case, 64, base2=True), one_pass(case, dtype), one_pass(case, dtype, True)]
        kernels += [merged(case, (n // 3, n // 2))] if n > 4 else []
        for outputs in kernels:
            for got, want in zip(outputs, wants, strict=True):
                verdict = judge_sums(got, want)
                assert verdict, f"{tokens} x {heads} x {n} x {dim}: {verdict.text}"
        assert judge_sums(online(case, fault=Fault())[0], wants[0])


def test_attentions_noise_is_computed_beside_the_references_own_result():
    rng = torch.Generator().manual_seed(2)
    kind = layout("rows_f64", 32, 8)
    cache = KVCache(kind, torch.randn(4, 8, 32, generator=rng, dtype=F64), torch.arange(4, dtype=torch.int32)[None])
    q, sink = torch.randn(3, 2, 32, generator=rng, dtype=F64), torch.randn(2, generator=rng)
    batch = Batch.build((3,), (20,), (0,))
    out, lse = attend(q, cache, None, None, sink, batch, scale=0.2, window_size=8, ratio=0)
    rows = torch.stack([cache.canonical(F64).flatten(0, 1)[p - 7 : p + 1] for p in (20, 21, 22)])
    found = softmax_sum(q, rows, torch.ones(3, 8, dtype=torch.bool), sink, 0.2, Precision())
    torch.testing.assert_close(found.out, out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.lse, lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scheme", "activation"), [("bf16", "none"), ("fp8_block128", "e4m3_128"), ("mxfp4", "e4m3_32")]
)
def test_experts_are_the_references_up_to_the_last_rounding(scheme, activation):
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(6, 128, generator=rng, dtype=F64).bfloat16().double()
    w13, w2 = (prepare(torch.randn(1, *shape, generator=rng), scheme) for shape in ((256, 128), (128, 128)))
    factor = torch.rand(6, generator=rng)
    none = torch.zeros(0, dtype=torch.int64)
    rows = Dispatched(x, None, "none", factor.double(), torch.tensor([6]), none, 6, 1, torch.bfloat16)
    want = experts(rows, w13, w2, clamp=2.0, activation=activation)
    weights = (w.dequantize(F64)[0] for w in (w13, w2))
    got = expert_rows(x, factor, *weights, 2.0, activation, torch.bfloat16, declared(torch.bfloat16, scheme))
    assert torch.equal(got.reference.to(torch.bfloat16), want)
    assert (got.noise > 0).all()


@pytest.mark.parametrize("activation", ["e4m3_128", "e4m3_32", "e2m1_32", "int8_token"])
def test_grid_steps_are_the_gaps_of_the_quantisers_grid(activation):
    """Values of a fine ramp take, after the quantiser, neighbours that lie `grid_step` apart."""
    ramp = torch.linspace(0.011, 1, 1 << 16, dtype=F64)
    width = 1 << 16 if activation == "int8_token" else int(activation.split("_")[1])
    blocks = (
        torch.cat([ramp[:, None], torch.ones(len(ramp), width - 1, dtype=F64)], 1) if width < 1 << 16 else ramp[None]
    )
    values = simulate(blocks, activation)[:, 0] if width < 1 << 16 else simulate(blocks, activation)[0]
    steps = grid_step(blocks, activation)[:, 0] if width < 1 << 16 else grid_step(blocks, activation)[0]
    gap = values.diff()
    at = gap.nonzero().flatten()
    assert len(at) > 5
    ratio = gap[at] / torch.maximum(steps[at], steps[at + 1])
    assert ((ratio > 0.49) & (ratio < 1.01)).all()  # half a step where the spacing doubles
    assert (ratio > 0.99).float().mean() > 0.5


def test_fp8_tensor_cores_are_noisier_than_float32_sums_but_within_their_declared_noise():
    rng = torch.Generator().manual_seed(4)
    a, b = (torch.randn(rows, 1024, generator=rng).to(torch.float8_e4m3fn).float() for rows in (16, 64))
    exact = a.double() @ b.double().mT
    error = (fp8_tensor_core(a, b).double() - exact).square().mean().sqrt()
    noise = {
        name: matmul_noise(a, b, exact, Precision(accumulate=name)).mean() for name in ("float32", "fp8_tensor_core")
    }
    assert 3 * noise["float32"] < error < noise["fp8_tensor_core"]


def test_groups_added_in_float16_are_declared_and_not_promised() -> None:
    """Exact sums of 256 products, each rounded to float16 and added there; a group too few is refused all the same."""
    sample = matmul_sample(33, 1024, 96, "w4a8_int_256", "int8_token", "bfloat16")
    x, weight = sample.arguments()
    scales = x.float().abs().amax(1, keepdim=True) / 127
    rows = (x.float() / scales).round().double().split(256, 1)
    groups = weight.dequantize(torch.float64).split(256, 1)
    terms = [(a @ b.mT).half() for a, b in zip(rows, groups, strict=True)]
    declared = Precision(accumulate="float16_256")
    for used, precision, passes in ((4, declared, True), (4, None, False), (3, declared, False)):
        total = torch.zeros_like(terms[0])
        for term in terms[:used]:
            total = total + term
        y = (total.float() * scales).to(x.dtype)
        verdict = expect("quant.matmul", (x, weight), dict(sample.attributes), precision).judge(y, (x, weight))
        assert verdict.passed is passes, str(verdict)
