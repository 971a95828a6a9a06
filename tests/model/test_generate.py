"""Generation: sampling, stop tokens, streaming, drafts right and wrong, and the texts of impossible requests."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hal.errors import ConfigError
from hal.models.deepseek_v4 import DeepseekV4, Sampler, Session
from hal.models.deepseek_v4.generate import generate

from . import conftest as lab

CONFIG = lab.tiny()
PROMPTS = [[1], [5, 9, 2], list(range(3, 37))]


@pytest.fixture(scope="module")
def model() -> DeepseekV4:
    return DeepseekV4.from_tensors(CONFIG, lab.random_tensors(CONFIG, 11), backend="reference")


@pytest.fixture(scope="module")
def plain(model: DeepseekV4) -> list[list[int]]:
    return generate(model, PROMPTS, max_new_tokens=40)


@pytest.mark.parametrize(("requests", "chunk"), [(1, 64), (2, 7), (3, 3)])
def test_company_and_chunks_do_not_matter(model: DeepseekV4, plain: list[list[int]], requests: int, chunk: int) -> None:
    assert generate(model, PROMPTS, max_new_tokens=40, requests=requests, chunk=chunk) == plain


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_drafts_change_steps_not_tokens(
    model: DeepseekV4, plain: list[list[int]], right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that are never, sometimes and always what the model would choose: same tokens, fewer steps the better they
    are.

    The guesses are put in by hand, so that acceptance, rejection and both in one batch happen at compression boundaries
    too.
    """
    caches = model.caches(tokens=300, requests=3, chunk=64)
    session = Session(model, caches, speculative=True)
    requests = [session.add(prompt, 40) for prompt in PROMPTS]
    whole = [prompt + tokens for prompt, tokens in zip(PROMPTS, plain, strict=True)]
    generator = torch.Generator().manual_seed(0)

    def guess(streams: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(streams.shape[0], CONFIG.vocab_size)
        going = [request for request in session.running if request.finish is None and request.computed]
        for row, request in zip(logits, going, strict=True):
            token = (whole[request.number] + [0])[min(len(request.tokens), len(whole[request.number]))]
            hit = torch.rand((), generator=generator) < right
            row[token if hit else (token + 1) % CONFIG.vocab_size] = 1
        return logits

    monkeypatch.setattr(model, "draft_logits", guess)
    steps = 0
    while session.running or session.waiting:
        session.step()
        steps += 1
    assert [request.generated for request in requests] == plain
    assert session.accepted == session.drafted if right == 1 else session.accepted < session.drafted
    assert (steps < 25) if right == 1 else (steps >= 26)


def test_drafts_with_temperature(model: DeepseekV4) -> None:
    """A position's random number does not depend on how the position was reached, so drafts keep sampled tokens too."""
    settings = {"max_new_tokens": 30, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    assert generate(model, PROMPTS, **settings, speculative=True) == generate(model, PROMPTS, **settings, requests=1)


def test_seeds(model: DeepseekV4) -> None:
    first, again, other = (generate(model, [[1], [1]], max_new_tokens=24, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0] != first[1], "equal prompts in one call must not get equal random numbers"


def test_sampler_follows_the_distribution() -> None:
    """Frequencies over 4000 positions lie within 4 standard deviations; top-p drops exactly the tail."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, kept in ((1.0, 4), (0.8, 2), (0.81, 3), (0.01, 1)):
        counts = Counter(Sampler(1.0, top_p, seed=9).choose(logits, position) for position in range(4000))
        assert set(counts) == set(range(kept))
        weights = logits.exp()[:kept] / logits.exp()[:kept].sum()
        for token, weight in enumerate(weights.tolist()):
            assert abs(counts[token] - 4000 * weight) <= 4 * (4000 * weight * (1 - weight)) ** 0.5 + 1e-9
    sharp = Counter(Sampler(0.25, seed=9).choose(logits, position) for position in range(2000))
    assert sharp[0] / 2000 == pytest.approx(0.5**4 / sum(p**4 for p in (0.5, 0.3, 0.15, 0.05)), abs=0.04)


def test_stop_tokens(model: DeepseekV4, plain: list[list[int]]) -> None:
    """A text ends before its first stop token, the others go on; with drafts as well."""
    stop = plain[0][17]
    expected = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in plain]
    for speculative in (False, True):
        assert generate(model, PROMPTS, max_new_tokens=40, stop=[stop], speculative=speculative) == expected


def test_end_of_text_is_the_configurations(plain: list[list[int]]) -> None:
    ending = plain[0][17]
    config = lab.tiny(eos_token_ids=(ending,))
    model = DeepseekV4.from_tensors(config, lab.random_tensors(config, 11), backend="reference")
    assert generate(model, PROMPTS[:1], max_new_tokens=40) == [plain[0][: plain[0].index(ending)]]


@pytest.mark.parametrize("speculative", [False, True])
def test_stream_tells_every_token_once(model: DeepseekV4, plain: list[list[int]], speculative: bool) -> None:
    told: list[list[int]] = [[] for _ in PROMPTS]
    generate(
        model,
        PROMPTS,
        max_new_tokens=40,
        stream=lambda n, token: told[n].append(token),
        requests=2,
        speculative=speculative,
    )
    assert told == plain


@pytest.mark.parametrize(
    ("prompt", "new", "words"),
    [
        ([], 5, "a prompt of 0 tokens and 5 new ones"),
        ([1], 0, "a prompt of 1 tokens and 0 new ones"),
        ([1, 96], 5, "token 96 is outside the vocabulary of 96"),
        ([1] * 90, 50, "140 tokens do not fit into 100"),
    ],
)
def test_impossible_requests(model: DeepseekV4, prompt: list[int], new: int, words: str) -> None:
    session = Session(model, model.caches(tokens=100))
    with pytest.raises(ConfigError) as caught:
        session.add(prompt, new)
    assert words in str(caught.value)
    assert "request 0" in str(caught.value)


def test_impossible_settings(model: DeepseekV4) -> None:
    with pytest.raises(ConfigError, match="temperature is -1"):
        generate(model, [[1]], max_new_tokens=1, temperature=-1)
    with pytest.raises(ConfigError, match="top_p is 0"):
        generate(model, [[1]], max_new_tokens=1, top_p=0)
    config = lab.tiny(num_nextn_predict_layers=0)
    without = DeepseekV4.from_tensors(config, lab.random_tensors(config, 0), backend="reference")
    with pytest.raises(ConfigError, match="needs an MTP block"):
        generate(without, [[1]], max_new_tokens=1, speculative=True)


def test_no_prompts(model: DeepseekV4) -> None:
    assert generate(model, [], max_new_tokens=3) == []
