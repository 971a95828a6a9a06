"""Generation: prefill in chunks, decode, ragged batches of requests, and drafts by multi-token prediction.

A `Session` runs requests of different lengths together: every step feeds each request its next tokens, a chunk of its
prompt or the token it has just chosen, in one packed batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hal.batch import Batch
from hal.errors import ConfigError
from hal.models.deepseek_v4.caches import Caches
from hal.models.deepseek_v4.model import DeepseekV4
from hal.models.deepseek_v4.sampling import Sampler

Stream = Callable[[int, int], None]
"""Called with the request's number and each token as it is chosen."""


@dataclass
class Request:
    """A prompt and what was made of it. `tokens` grows; the first `computed` of them are in the caches."""

    number: int
    tokens: list[int]
    prompt: int
    limit: int
    sampler: Sampler
    stop: frozenset[int]
    slot: int = -1
    computed: int = 0
    draft: int | None = None
    finish: str | None = None

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt; a stop token is not one of them."""
        return self.tokens[self.prompt :]


@dataclass
class Session:
    """Requests running on one model and one set of caches, first come first served.

    Attributes:
        speculative: try the MTP block's drafts; the tokens are those of plain decoding.
        stream: told every token.
        drafted, accepted: how many drafts were tried, and how many were right.
    """

    model: DeepseekV4
    caches: Caches
    speculative: bool = False
    stream: Stream | None = None
    drafted: int = 0
    accepted: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    _count: int = 0
    _promised: int = 0

    def __post_init__(self) -> None:
        if self.speculative and not self.model.mtp:
            raise ConfigError(
                "speculative decoding needs an MTP block and the checkpoint has none",
                where="num_nextn_predict_layers",
                fix="generate without speculation",
            )

    def add(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Collection[int] = (),
    ) -> Request:
        """Queue a prompt of at least one token; it ends after `max_new_tokens`, or before a token of `stop`.

        Raises:
            ConfigError: an empty prompt, a token outside the vocabulary, or more tokens than the caches or the model
            hold.
        """
        number, vocab = self._count, self.model.config.vocab_size
        where = f"request {number}"
        if not prompt or max_new_tokens < 1:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones",
                where=where,
                fix="give at least one of each",
            )
        strange = [token for token in prompt if not 0 <= token < vocab]
        if strange:
            raise ConfigError(
                f"token {strange[0]} is outside the vocabulary of {vocab}", where=where, fix="use the model's tokenizer"
            )
        total, most = len(prompt) + max_new_tokens, min(self.caches.tokens, self.model.context)
        if total > most:
            raise ConfigError(
                f"{total} tokens do not fit into {most}", where=where, fix="make larger caches, or ask for less"
            )
        sampler = Sampler(temperature, top_p, seed, number)
        request = Request(number, list(prompt), len(prompt), total, sampler, frozenset(stop))
        self.waiting.append(request)
        self._count += 1
        return request

    def run(self) -> None:
        """Step until every request has finished."""
        while self.waiting or self.running:
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Feed every running request its next tokens and let those that have seen all of theirs choose one."""
        self._admit()
        plan = self._plan()
        spans = [(request.slot, request.computed, request.computed + len(fed)) for request, fed in plan]
        self.caches.reserve(spans)
        device = self.model.device
        batch = Batch.build(
            [len(fed) for _, fed in plan], [start for _, start, _ in spans], [s for s, _, _ in spans], device
        )
        ids = torch.tensor([token for _, fed in plan for token in fed], dtype=torch.int64, device=device)
        streams = self.model(ids, batch, self.caches)
        committed = self._choose(plan, streams)
        if self.speculative:
            self._draft(plan, committed, streams)
        for request, _ in plan:
            if request.finish is not None:
                self.caches.close(request.slot)
                self.running.remove(request)
                self._promised -= request.limit

    def _admit(self) -> None:
        """Start waiting requests while a slot is free and the caches can hold all they may become."""
        while self.waiting and self.caches.free_slots and self._promised + self.waiting[0].limit <= self.caches.tokens:
            request = self.waiting.popleft()
            request.slot = self.caches.open()
            self._promised += request.limit
            self.running.append(request)

    def _plan(self) -> list[tuple[Request, list[int]]]:
        """Tokens to feed: decoding requests first, then prompts as far as the step's budget reaches."""
        budget, plan = self.caches.chunk, []
        for request in sorted(self.running, key=lambda request: len(request.tokens) - request.computed):
            fed = request.tokens[request.computed : request.computed + budget]
            if request.draft is not None and len(fed) < budget:
                fed.append(request.draft)
            if fed:
                plan.append((request, fed))
                budget -= len(fed)
        return plan

    def _choose(self, plan: list[tuple[Request, list[int]]], streams: Tensor) -> list[int]:
        """Let finished prefills and decodes choose; returns how many fed tokens of each request are now settled."""
        rows: list[int] = []
        first = 0
        for request, fed in plan:
            known = len(request.tokens) - request.computed
            rows += range(first + known - 1, first + len(fed)) if len(fed) >= known else []
            first += len(fed)
        logits = iter(self.model.head_logits(streams[torch.tensor(rows, dtype=torch.int64, device=streams.device)]))
        settled = []
        for request, fed in plan:
            known = len(request.tokens) - request.computed
            count = min(known, len(fed))
            if len(fed) >= known:
                token = self._take(request, next(logits))
                if len(fed) > known:
                    self.drafted += 1
                    following = next(logits)
                    if request.finish is None and token == request.draft:
                        self.accepted += 1
                        count += 1
                        self._take(request, following)
            request.computed += count
            request.draft = None
            settled.append(count)
        return settled

    def _take(self, request: Request, logits: Tensor) -> int:
        token = request.sampler.choose(logits, len(request.tokens))
        if token in request.stop:
            request.finish = "stop"
            return token
        request.tokens.append(token)
        if len(request.tokens) == request.limit:
            request.finish = "length"
        if self.stream is not None:
            self.stream(request.number, token)
        return token

    def _draft(self, plan: list[tuple[Request, list[int]]], settled: list[int], streams: Tensor) -> None:
        """Advance the MTP block over the settled tokens; let it guess what follows each request's newest token."""
        lengths: list[int] = []
        starts: list[int] = []
        following: list[int] = []
        rows: list[int] = []
        going: list[Request] = []
        first = 0
        for (request, fed), count in zip(plan, settled, strict=True):
            if request.finish is None:
                start = request.computed - count
                going.append(request)
                lengths.append(count)
                starts.append(start)
                following += request.tokens[start + 1 : start + 1 + count]
                rows += range(first, first + count)
            first += len(fed)
        if not rows:
            return
        device = self.model.device
        batch = Batch.build(lengths, starts, [request.slot for request in going], device)
        kept = streams[torch.tensor(rows, dtype=torch.int64, device=device)]
        drafted = self.model.draft(kept, torch.tensor(following, dtype=torch.int64, device=device), batch, self.caches)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        for request, logits in zip(going, self.model.draft_logits(drafted[last]), strict=True):
            if request.computed == len(request.tokens) - 1 and len(request.tokens) + 1 < request.limit:
                request.draft = request.sampler.choose(logits, len(request.tokens))


def generate(
    model: DeepseekV4,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] | None = None,
    stream: Stream | None = None,
    speculative: bool = False,
    requests: int = 8,
    chunk: int = 512,
) -> list[list[int]]:
    """Continue every prompt; returns the new tokens of each, in the order of the prompts.

    Args:
        prompts: token ids, at least one each.
        max_new_tokens: per prompt.
        temperature: 0 is greedy.
        top_p: 1 keeps every token.
        seed: equal seeds give equal tokens, whatever else runs in the batch.
        stop: tokens that end a text and are not part of it; by default the configuration's end-of-text tokens.
        stream: called with `(prompt number, token)` as tokens are chosen.
        speculative: use the MTP block's drafts; same tokens, fewer steps.
        requests: most prompts that run at a time.
        chunk: most tokens fed in one step.
    """
    needs = sorted((len(prompt) + max_new_tokens for prompt in prompts), reverse=True)
    requests = max(1, min(requests, len(prompts)))
    caches = model.caches(tokens=max(1, sum(needs[:requests])), requests=requests, chunk=chunk)
    session = Session(model, caches, speculative=speculative, stream=stream)
    ends = model.config.eos_token_ids if stop is None else stop
    queued = [
        session.add(prompt, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=ends)
        for prompt in prompts
    ]
    session.run()
    return [request.generated for request in queued]
