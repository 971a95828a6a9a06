"""The model equals transformers' DeepseekV4ForCausalLM on the same random weights, in float32, without simulated
quantisation.

ReLU index scores tie at exactly zero and the order of ties is free, so every configuration has at least 16 index heads:
an entry that all heads score zero is then too rare to matter, and no tolerance has to hide it.
"""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal.models.deepseek_v4 import DeepseekV4, DeepseekV4Config
from hal.models.deepseek_v4.generate import generate

from . import conftest as lab

TOLERANCE = 2e-5


def lengths_around(config: DeepseekV4Config) -> list[int]:
    """Prompt lengths on, before and after every boundary: compression windows, the attention window, two of each."""
    edges = {4, 8, config.sliding_window, *(ratio for ratio in config.compress_ratios if ratio)}
    return sorted({length for edge in edges for length in (edge - 1, edge, edge + 1)})


@st.composite
def cases(draw: st.DrawFn) -> tuple[DeepseekV4Config, list[list[int]], int, int]:
    """A configuration, ragged prompts (short ones and ones at boundaries), a chunk size and a seed."""
    config = draw(lab.configurations())
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
    lengths += draw(st.lists(st.sampled_from(lengths_around(config)), min_size=1, max_size=3))
    lengths += draw(st.lists(st.integers(6, 60), max_size=1))
    prompts = [draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=n, max_size=n)) for n in lengths]
    return config, prompts, draw(st.integers(2, 40)), draw(st.integers(0, 2**16))


def check(config: DeepseekV4Config, prompts: list[list[int]], chunk: int, seed: int, backend: str) -> None:
    """One shot, in chunks, and token by token, requests interleaved in one batch, against transformers alone."""
    tensors = lab.random_tensors(config, seed)
    model = DeepseekV4.from_tensors(config, tensors, backend=backend)
    oracle = lab.transformers_model(config, tensors)
    with torch.no_grad():
        expected = [oracle(torch.tensor([prompt])).logits[0] for prompt in prompts]
        one_shot = model.logits(prompts)
        fed = {"one shot": one_shot}
        for step in (chunk, 1):
            caches = model.caches(
                tokens=sum(map(len, prompts)), requests=len(prompts), chunk=step * len(prompts), block=8
            )
            slots = [caches.open() for _ in prompts]
            rows: list[list[torch.Tensor]] = [[] for _ in prompts]
            for start in range(0, max(map(len, prompts)), step):
                feeds = [
                    (slot, start, p[start : start + step]) for slot, p in zip(slots, prompts, strict=True) if p[start:]
                ]
                outputs = iter(lab.run(model, caches, feeds))
                for row, prompt in zip(rows, prompts, strict=True):
                    if prompt[start:]:
                        row.append(next(outputs))
            fed[f"{step} at a time"] = [torch.cat(row) for row in rows]
    for how, results in fed.items():
        for prompt, result, right in zip(prompts, results, expected, strict=True):
            assert result.dtype == torch.float32
            worst = (result - right).abs().max().item()
            assert worst <= TOLERANCE, f"{how}, prompt of {len(prompt)}: {worst}"


quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
long = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(case=cases())
def test_logits(backend: str, case: tuple[DeepseekV4Config, list[list[int]], int, int]) -> None:
    check(*case, backend)


@pytest.mark.slow
@long
@given(case=cases())
def test_logits_of_many_configurations(backend: str, case: tuple[DeepseekV4Config, list[list[int]], int, int]) -> None:
    check(*case, backend)


@torch.no_grad()
def test_other_dtypes(backend: str) -> None:
    """float64 agrees with float32 to its rounding, bfloat16 in the main; logits are never narrower than float32."""
    config = lab.tiny()
    tensors = lab.random_tensors(config, 5)
    prompt = lab.random_tokens(config, 60, seed=5)
    half, single, double = (
        DeepseekV4.from_tensors(config, tensors, backend=backend, dtype=dtype).logits([prompt])[0]
        for dtype in ("bfloat16", "float32", "float64")
    )
    assert (half.dtype, single.dtype, double.dtype) == (torch.float32, torch.float32, torch.float64)
    assert (single - double).abs().max() <= TOLERANCE
    assert torch.nn.functional.cosine_similarity(half, single).median() > 0.99


@functools.cache
def greedy_case() -> tuple[dict[str, torch.Tensor], list[list[int]], list[list[int]]]:
    """Weights, prompts of 2 and 40 tokens, and transformers' 256 greedy tokens for each."""
    config = lab.tiny()
    tensors = lab.random_tensors(config, 0)
    oracle = lab.transformers_model(config, tensors)
    prompts = [lab.random_tokens(config, length, seed=length) for length in (2, 40)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = oracle.generate(
            ids, attention_mask=mask, max_new_tokens=256, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    return tensors, prompts, expected


def test_greedy_tokens(backend: str) -> None:
    """256 greedy steps of two requests in one batch, and 64 with drafts, are transformers'."""
    tensors, prompts, expected = greedy_case()
    model = DeepseekV4.from_tensors(lab.tiny(), tensors, backend=backend)
    assert generate(model, prompts, max_new_tokens=256, chunk=16) == expected
    assert generate(model, prompts, max_new_tokens=64, speculative=True) == [tokens[:64] for tokens in expected]


def test_draft_block() -> None:
    """The MTP block equals its formula on transformers' decoder layer: join of two norms, one block, own head."""
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as theirs

    config = lab.tiny(compress_ratios=(4, 0), num_hidden_layers=2)
    tensors = lab.random_tensors(config, 7)
    prompt = lab.random_tokens(config, 40, seed=7)
    model = DeepseekV4.from_tensors(config, tensors, backend="reference")

    main = lab.transformers_model(config, tensors)
    as_layer = {
        name.replace("mtp.0.", "layers.1."): value for name, value in tensors.items() if name.startswith("mtp.0.")
    }
    borrowed = {**tensors, **as_layer, "norm.weight": as_layer["layers.1.norm.weight"]}
    borrowed |= {f"hc_head_{name}": as_layer[f"layers.1.hc_head_{name}"] for name in ("fn", "base", "scale")}
    draft = lab.transformers_model(config, borrowed)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        norm = theirs.DeepseekV4RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        norm.weight.data = tensors[f"mtp.0.{name}.weight"]
        return norm(x)

    with torch.no_grad():
        caught: list[torch.Tensor] = []
        main.model.hc_head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        main(torch.tensor([prompt]))
        embedded = tensors["embed.weight"][torch.tensor(prompt[1:])]
        joined = (normed(embedded, "enorm") @ tensors["mtp.0.e_proj.weight"].T)[None, :, None, :]
        joined = joined + normed(caught[0][:, :-1], "hnorm") @ tensors["mtp.0.h_proj.weight"].T
        draft.model.layers[0].register_forward_hook(lambda *_: joined)
        expected = draft(torch.tensor([prompt[1:]])).logits[0]
        _, (drafted,) = model.logits_with_drafts([prompt])
    torch.testing.assert_close(drafted, expected, rtol=0, atol=TOLERANCE)
