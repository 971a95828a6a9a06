"""What a call must return: the reference in the model's dtype passes, and damage to any output is noticed and named."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.errors import ContractError
from hal.formats import prepare
from hal.layouts import layout
from hal.numerics import Precision
from hal.numerics.contracts import expect
from hal.ops import CONTRACTS, get
from hal.reference.attention import attend
from hal.reference.experts import dispatch
from hal.rope import Rope

BF16, F32 = torch.bfloat16, torch.float32
ROPE = Rope(64, 160000.0, 16.0, 65536)
SLOTS = 4


class Maker:
    """Random arguments of one call; requests continue, start and wait in shuffled slots."""

    def __init__(self, dtype, seed=0):
        self.rng, self.dtype = torch.Generator().manual_seed(seed), dtype
        self.batch = Batch.build((9, 1, 0, 3), (126, 40, 7, 0), (2, 0, 3, 1))
        self.tokens = self.batch.tokens

    def normal(self, *shape, dtype=None):
        return torch.randn(*shape, generator=self.rng).to(dtype or self.dtype)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.rng)

    def cache(self, name, dim, rows, block=16):
        kind = layout(name, dim, block)
        pages = kind.allocate(SLOTS * -(-rows // block))
        pages.fill_(torch.nan if pages.is_floating_point() else 255)
        table = torch.randperm(len(pages), generator=self.rng).view(SLOTS, -1).int()
        cache = KVCache(kind, pages, table)
        every = torch.arange(SLOTS * rows)
        cache.write(self.normal(len(every), dim, dtype=F32), cache.physical(every // rows, every % rows))
        return cache

    def state(self, ratio, overlap, dim):
        made = StateCache.allocate(SLOTS, ratio, overlap, dim)
        made.tensor.copy_(self.normal(*made.tensor.shape, dtype=F32))
        return made

    def weights(self, scheme):
        make = lambda *shape: prepare(self.normal(*shape, dtype=F32) * 0.1, scheme)  # noqa: E731
        return make(4, 256, 128), make(4, 128, 128)

    def routing(self):
        ids = torch.rand(self.tokens, 4, generator=self.rng).topk(2).indices.int()
        ids[3, 1] = -1
        return ids, torch.rand(self.tokens, 2, generator=self.rng)

    def dispatched(self, activation):
        return dispatch(self.normal(self.tokens, 128), *self.routing(), None, experts=4, activation=activation)


def _attend(m, kind, rows):
    top = m.integers(10, m.tokens, 6).int().where(m.integers(4, m.tokens, 6) > 0, -1)
    top = top.where(top < m.batch.visible(4)[:, None], -1)
    compressed = None if kind == "window" else m.cache(rows, 512, 40)
    q, sink = m.normal(m.tokens, 8, 512), m.normal(8, dtype=F32)
    attributes = {"scale": 512**-0.5, "window_size": 32, "ratio": {"window": 0, "csa": 4, "hca": 128}[kind]}
    return (q, m.cache(rows, 512, 160), compressed, top if kind == "csa" else None, sink, m.batch), attributes


def _compress_pool(m, ratio):
    overlap, width = ratio == 4, 64 * (2 if ratio == 4 else 1)
    kv, score = (m.normal(m.tokens, width, dtype=F32) for _ in range(2))
    arguments = kv, score, m.normal(ratio, width, dtype=F32), m.batch, m.state(ratio, overlap, 64)
    return arguments, {"ratio": ratio, "overlap": overlap}


def _compress(m, rows, hadamard):
    x, ape = m.normal(m.tokens, 96), m.normal(4, 256, dtype=F32)
    weights = (m.normal(256, 96) * 0.1 for _ in range(2))
    cache = m.cache(rows, 128, 40)
    arguments = x, *weights, ape, 1 + 0.1 * m.normal(128), ROPE, m.batch, m.state(4, True, 128), cache
    return arguments, {"ratio": 4, "overlap": True, "hadamard": hadamard, "eps": 1e-6}


def _store(m, rows, dim, hadamard):
    cache = m.cache(rows, dim, 160)
    physical = cache.physical(m.batch.slots[m.batch.request], m.batch.positions)
    physical[2] = -1
    arguments = m.normal(m.tokens, dim), 1 + 0.1 * m.normal(dim), ROPE, m.batch.positions, physical, cache
    return arguments, {"hadamard": hadamard, "eps": 1e-6}


def _index(m, rows, select):
    q, weights, cache = m.normal(m.tokens, 16, 128), m.normal(m.tokens, 16), m.cache(rows, 128, 40)
    attributes = {"ratio": 4, "scale": 0.02}
    if not select:
        return (q, weights, m.batch, cache), attributes
    return (q, weights, ROPE, m.batch, cache), {**attributes, "top_k": 8, "hadamard": rows.startswith("index")}


def _route(m, scoring, hashed):
    logits, table = m.normal(m.tokens, 64, dtype=F32), m.integers(64, 50, 4).int()
    extra = (None, m.integers(50, m.tokens), table) if hashed else (0.1 * m.normal(64, dtype=F32), None, None)
    return (logits, *extra), {"top_k": 4, "scoring": scoring, "scale": 1.5}


def _ffn(m, scheme, activation):
    arguments = m.normal(m.tokens, 128), *m.routing(), *m.weights(scheme), m.normal(m.tokens, 128), None
    return arguments, {"experts": 4, "clamp": 2.0, "activation": activation}


def _mhc(m):
    streams, fn = m.normal(m.tokens, 4, 96), m.normal(24, 384, dtype=F32) * 384**-0.5
    return streams, fn, torch.tensor([1.0, 0.7, 1.5]), 2 * m.normal(24, dtype=F32)


def _mhc_post(m):
    comb = (2 * m.normal(m.tokens, 4, 4, dtype=F32)).softmax(-1)
    return m.normal(m.tokens, 96), m.normal(m.tokens, 4, 96), m.normal(m.tokens, 4, dtype=F32).sigmoid(), comb


def _combine(m):
    dispatched = m.dispatched("none")
    return (m.normal(len(dispatched.rows), 96), dispatched, m.normal(m.tokens, 96)), {}


CALLS = {
    "attn.attend/window": lambda m: _attend(m, "window", "rows_bf16"),
    "attn.attend/csa": lambda m: _attend(m, "csa", "v4_584"),
    "attn.attend/hca": lambda m: _attend(m, "hca", "rows_f32"),
    "attn.compress_pool/csa": lambda m: _compress_pool(m, 4),
    "attn.compress_pool/hca": lambda m: _compress_pool(m, 128),
    "attn.compress/rows": lambda m: _compress(m, "rows_bf16", False),
    "attn.compress/index": lambda m: _compress(m, "index_mxfp4_68", True),
    "attn.store/v4": lambda m: _store(m, "v4_584", 512, False),
    "attn.store/plain": lambda m: _store(m, "rows_f32", 192, False),
    "attn.store/index": lambda m: _store(m, "index_fp8_132", 128, True),
    "attn.index_scores/plain": lambda m: _index(m, "rows_bf16", False),
    "attn.index_scores/mxfp4": lambda m: _index(m, "index_mxfp4_68", False),
    "attn.select/plain": lambda m: _index(m, "rows_f32", True),
    "attn.select/mxfp4": lambda m: _index(m, "index_mxfp4_68", True),
    "attn.select/int8": lambda m: _index(m, "index_int8_130", True),
    "moe.route/sqrtsoftplus": lambda m: _route(m, "sqrtsoftplus", False),
    "moe.route/softmax": lambda m: _route(m, "softmax", False),
    "moe.route/hashed": lambda m: _route(m, "sigmoid", True),
    "moe.dispatch/plain": lambda m: (
        (m.normal(m.tokens, 128), *m.routing(), None),
        {"experts": 4, "activation": "none"},
    ),
    "moe.dispatch/fp8": lambda m: (
        (m.normal(m.tokens, 128), *m.routing(), None),
        {"experts": 4, "activation": "e4m3_128"},
    ),
    "moe.experts/bf16": lambda m: ((m.dispatched("none"), *m.weights("bf16")), {"clamp": 2.0, "activation": "none"}),
    "moe.experts/mxfp4": lambda m: (
        (m.dispatched("e4m3_32"), *m.weights("mxfp4")),
        {"clamp": 2.0, "activation": "e4m3_32"},
    ),
    "moe.experts/int8": lambda m: (
        (m.dispatched("int8_token"), *m.weights("w8a8_int8")),
        {"clamp": 2.0, "activation": "int8_token"},
    ),
    "moe.combine": _combine,
    "moe.ffn/fp8": lambda m: _ffn(m, "fp8_block128", "e4m3_128"),
    "quant.quantize/fp8": lambda m: ((m.normal(m.tokens, 256),), {"activation": "e4m3_128"}),
    "quant.quantize/fp4": lambda m: ((m.normal(m.tokens, 256),), {"activation": "e2m1_32"}),
    "quant.quantize/int8": lambda m: ((m.normal(m.tokens, 256),), {"activation": "int8_token"}),
    "quant.matmul/fp8": lambda m: (
        (m.normal(m.tokens, 256), prepare(m.normal(128, 256, dtype=F32), "fp8_block128")),
        {"activation": "e4m3_128"},
    ),
    "quant.matmul/bf16": lambda m: (
        (m.normal(m.tokens, 256), prepare(m.normal(96, 256, dtype=F32), "bf16")),
        {"activation": "none"},
    ),
    "mhc.pre": lambda m: (_mhc(m), {"iterations": 20, "norm_eps": 1e-6, "eps": 1e-6}),
    "mhc.post": lambda m: (_mhc_post(m), {}),
    "quant.matmul/int8": lambda m: (
        (m.normal(m.tokens, 256), prepare(m.normal(96, 256, dtype=F32), "w8a8_int8")),
        {"activation": "int8_token"},
    ),
}


def run(title, dtype):
    """Expectation, outputs of the reference in the model's dtype, and the arguments it left behind."""
    name = title.split("/")[0]
    arguments, attributes = CALLS[title](Maker(dtype))
    expectation = expect(name, arguments, attributes)
    module, function = get(name).reference.split(":")
    outputs = getattr(import_module(module), function)(*arguments, **attributes)
    return expectation, outputs if isinstance(outputs, tuple) else () if outputs is None else (outputs,), arguments


def test_every_contract_has_a_call_here():
    assert {title.split("/")[0] for title in CALLS} == set(CONTRACTS)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, F32, torch.float64], ids=str)
@pytest.mark.parametrize("title", CALLS)
def test_the_reference_in_the_models_dtype_passes(title, dtype):
    expectation, outputs, arguments = run(title, dtype)
    verdict = expectation.judge(outputs, arguments)
    assert verdict, "\n".join(part.text for part in verdict.parts if not part)
    assert verdict.parts


def damages(value):
    """Copies of an output or of a mutated argument, each with one thing wrong."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.element_size() > 1:
            yield "2 % too large", value * 1.02
            yield "first row repeats the second", torch.cat([value[1:2], value[1:]])
            yield "a NaN", value.clone().index_fill_(-1, torch.tensor([value.shape[-1] // 2]), torch.nan)
        else:
            raw = value.view(torch.uint8) if value.element_size() == 1 else value
            yield "first row one too large", torch.cat([raw[:1] + 1, raw[1:]]).view(value.dtype)
        yield "a row missing", value[:-1]
    elif isinstance(value, KVCache):
        pages = value.pages.clone()
        pages.view(-1, *pages.shape[1:])[:] = pages.roll(1, 0)
        yield "pages in the wrong place", replace(value, pages=pages)
    elif isinstance(value, StateCache):
        yield "another request's state", StateCache(value.tensor.roll(1, 0))
        yield "halves swapped", StateCache(torch.cat([value.score, value.kv], -1))
    else:  # Dispatched
        yield "rows reversed", replace(value, rows=value.rows.view(torch.uint8).flip(0).view(value.rows.dtype))
        yield "weights reversed", replace(value, weights=value.weights.flip(0))
        yield "a slot forgotten", replace(value, index=value.index.clone().index_fill_(0, torch.tensor([0]), -1))
        yield "counts shifted", replace(value, counts=value.counts.roll(1))
        yield "way back shifted", replace(value, index=torch.where(value.index > 0, value.index - 1, value.index))


@pytest.mark.parametrize("title", CALLS)
def test_damage_is_noticed_and_named(title):
    expectation, outputs, arguments = run(title, BF16)
    mutated = [i for i, a in enumerate(get(title.split("/")[0]).parsed.arguments) if a.mutated]
    seen = 0
    for i, output in enumerate(outputs):
        for words, wrong in damages(output):
            verdict = expectation.judge((*outputs[:i], wrong, *outputs[i + 1 :]), arguments)
            assert not verdict, f"output {i}: {words}"
            assert verdict.output
            assert verdict.rule in verdict.text
            seen += 1
    for i in mutated:
        for words, wrong in damages(arguments[i]):
            assert not expectation.judge(outputs, (*arguments[:i], wrong, *arguments[i + 1 :])), (
                f"argument {i}: {words}"
            )
            seen += 1
    assert seen
    assert not expectation.judge((), ())


def test_a_kernel_may_declare_another_precision():
    q, window, *_, sink, batch = CALLS["attn.attend/window"](Maker(F32))[0]
    attributes = {"scale": 512**-0.5, "window_size": 32, "ratio": 0}
    arguments = (q, window, None, None, sink, batch)
    out, lse = attend(q.bfloat16(), window, None, None, sink, batch, **attributes)
    low = out.float(), lse
    assert not expect("attn.attend", arguments, attributes).judge(low)
    tolerant = expect("attn.attend", arguments, attributes, Precision(weights="bfloat16", scores="bfloat16"))
    assert tolerant.judge(low).parts[1].passed
    assert (
        tolerant.parts[0].want.noise.mean()
        > 100 * expect("attn.attend", arguments, attributes).parts[0].want.noise.mean()
    )


def test_the_noise_of_attention_comes_from_the_rows_the_reference_reads():
    arguments, attributes = CALLS["attn.attend/csa"](Maker(torch.float64))
    part = expect("attn.attend", arguments, attributes).parts[0]
    assert (part.want.noise > 0).all()
    assert part.want.noise.isfinite().all()  # pages hold NaN wherever nothing was written


def test_an_unknown_contract_is_an_error():
    with pytest.raises(ContractError, match="no rule to judge"):
        expect("moe.pray", (), {})
