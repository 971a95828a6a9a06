"""`mhc.pre` and `mhc.post`: what transformers computes, written out with loops, and the edges."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

from hal.reference.mhc import post, pre

N, HIDDEN, MIXES = 4, 24, 24
ATTRIBUTES = {"iterations": 20, "norm_eps": 1e-6, "eps": 1e-6}


def drawn(tokens: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    streams, fn, scale, base = (
        torch.randn(*shape, generator=rng, dtype=dtype)
        for shape in ((tokens, N, HIDDEN), (MIXES, N * HIDDEN), (3,), (MIXES,))
    )
    return streams, fn / 8, scale, 2 * base


def test_equals_transformers() -> None:
    streams, fn, scale, base = drawn()
    config = DeepseekV4Config(hidden_size=HIDDEN, hc_mult=N, rms_norm_eps=1e-6, hc_eps=1e-6, hc_sinkhorn_iters=20)
    theirs = DeepseekV4HyperConnection(config)
    with torch.no_grad():
        theirs.fn.copy_(fn), theirs.scale.copy_(scale), theirs.base.copy_(base)
        expand, comb, y = theirs(streams.float()[None])
    got = pre(streams, fn, scale, base, **ATTRIBUTES)
    for mine, other in zip(got, (y[0], expand[0], comb[0]), strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=1e-5, atol=1e-6)


def test_written_out_for_one_token() -> None:
    streams, fn, scale, base = drawn(1)
    flat = streams.flatten().tolist()
    norm = math.sqrt(sum(x * x for x in flat) / len(flat) + 1e-6)
    logits = [sum(w * x for w, x in zip(row, flat, strict=True)) / norm for row in fn.tolist()]
    part = [0] * N + [1] * N + [2] * N * N
    logits = [x * scale[p].item() + b for x, p, b in zip(logits, part, base.tolist(), strict=True)]
    weights = [1 / (1 + math.exp(-x)) + 1e-6 for x in logits[:N]]
    comb = [logits[2 * N + j * N : 2 * N + (j + 1) * N] for j in range(N)]
    comb = [[math.exp(x) / sum(map(math.exp, row)) + 1e-6 for x in row] for row in comb]
    for turn in range(20):
        if turn:
            comb = [[x / (sum(row) + 1e-6) for x in row] for row in comb]
        sums = [sum(row[k] for row in comb) + 1e-6 for k in range(N)]
        comb = [[x / total for x, total in zip(row, sums, strict=True)] for row in comb]
    y, expand, mixed = pre(streams, fn, scale, base, **ATTRIBUTES)
    want = [sum(weights[j] * streams[0, j, c].item() for j in range(N)) for c in range(HIDDEN)]
    torch.testing.assert_close(y[0], torch.tensor(want, dtype=torch.float64))
    torch.testing.assert_close(
        expand[0], torch.tensor([2 / (1 + math.exp(-x)) for x in logits[N : 2 * N]], dtype=torch.float64)
    )
    torch.testing.assert_close(mixed[0], torch.tensor(comb, dtype=torch.float64))


def test_comb_ends_on_its_columns_and_is_used_transposed() -> None:
    streams, fn, scale, base = drawn()
    y, expand, comb = pre(streams, fn, scale, base, **ATTRIBUTES)
    torch.testing.assert_close(comb.sum(1), torch.ones(5, N, dtype=torch.float64), rtol=0, atol=3e-6)
    want = torch.einsum("tjk,tjc->tkc", comb, streams) + expand[..., None] * y[:, None]
    torch.testing.assert_close(post(y, streams, expand, comb), want)


def test_differentiable_in_float64() -> None:
    streams, fn, scale, base = (x.requires_grad_() for x in drawn(2))

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return post(torch.tanh((found := pre(*inputs, **ATTRIBUTES))[0]), inputs[0], *found[1:])

    assert torch.autograd.gradcheck(run, (streams, fn, scale, base), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_and_dtypes(dtype: torch.dtype) -> None:
    streams, fn, scale, base = (x.float() for x in drawn(0))
    y, expand, comb = pre(streams.to(dtype), fn, scale, base, **ATTRIBUTES)
    assert [tuple(x.shape) for x in (y, expand, comb)] == [(0, HIDDEN), (0, N), (0, N, N)]
    assert (y.dtype, expand.dtype, comb.dtype) == (dtype, torch.float32, torch.float32)
    assert post(y, streams.to(dtype), expand, comb).shape == (0, N, HIDDEN)
