"""`hal bench decode`: one token at a time from a long context, through `hal` and through transformers.

Both prefill the same short prompt; then both caches are grown to the context with the same random rows, so that a
million tokens need no quadratic prefill, and the logits of every measured step can still be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hal.bench.peer import TINY_512, pair
from hal.bench.result import Comparison, interleaved
from hal.errors import ConfigError
from hal.models.deepseek_v4 import DeepseekV4

PROMPT = 1024  # tokens really prefilled
STEP = 128  # a context is a whole number of every compressor's windows, as the prompt is: no state needs moving
WARM = 2
TOKEN = 7  # fed in every step


def decode(
    context: int = 65536, *, rounds: int = 8, backend: str | None = None, threads: int | None = None
) -> Comparison:
    """Seconds per token behind `context` tokens, and how far both sides' logits differ.

    Args:
        context: tokens in the caches before the first step, a multiple of 128 from 1024 on.
        rounds: measured tokens of each side, after two that warm up.
        backend: as `HAL_BACKEND`.
        threads: of torch, in both; by default torch's own choice.

    Raises:
        ConfigError: the context is too short, too long, or not a multiple of 128.
    """
    import torch

    steps, longest = rounds + WARM, TINY_512["max_position_embeddings"]
    if context % STEP or not PROMPT <= context <= longest - steps:
        raise ConfigError(
            f"cannot decode {steps} tokens behind {context}",
            where="hal bench decode",
            fix=f"give a multiple of {STEP} from {PROMPT} on that leaves room below {longest}",
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        model, peer = pair(backend)
        with torch.inference_mode():
            prompt = torch.randint(0, model.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(1))
            ours, theirs = Ours(model, prompt, context, steps), Theirs(peer, prompt, context)
            for layer, name, rows in _grown(context):
                ours.grow(layer, name, rows)
                theirs.grow(layer, name, rows)
            differences: list[float] = []

            def compare() -> None:
                differences.append(float((theirs.step() - ours.logits).abs().max()))

            interleaved(WARM, ours.step, compare)
            mine, peers = interleaved(rounds, ours.step, compare)
        work = f"decoding behind {context} tokens"
        return Comparison(work, "transformers", mine, peers, torch.get_num_threads(), max(differences))
    finally:
        torch.set_num_threads(before)


def _grown(context: int) -> Iterator[tuple[int, str, Any]]:
    """Random rows between prompt and context for every compressed cache: layer, `compressor` or `indexer`, rows."""
    import torch

    generator = torch.Generator().manual_seed(2)
    for layer, ratio in enumerate(TINY_512["compress_ratios"]):
        widths = {0: {}, 4: {"compressor": 512, "indexer": 128}, 128: {"compressor": 512}}[ratio]
        for name, width in widths.items():
            yield layer, name, torch.randn((context - PROMPT) // ratio, width, generator=generator)


class Ours:
    """A `hal` request whose caches are grown by hand."""

    def __init__(self, model: DeepseekV4, prompt: Any, context: int, steps: int) -> None:
        from hal.batch import Batch

        self.model, self.position, self.logits = model, context, prompt
        self.caches = model.caches(tokens=context + steps, chunk=PROMPT)
        self.slot = self.caches.open()
        self.caches.reserve([(self.slot, 0, PROMPT)])
        model(prompt.to(model.device), Batch.build([PROMPT], [0], [self.slot], model.device), self.caches)
        kept = TINY_512["sliding_window"] - 1
        windows = [layer.window for layer in self.caches.layers]
        newest = [cache.read(self._physical(cache, PROMPT - kept, PROMPT)) for cache in windows]
        self.caches.reserve([(self.slot, context - kept, context)])
        for cache, rows in zip(windows, newest, strict=True):
            cache.write(rows, self._physical(cache, context - kept, context))

    def grow(self, layer: int, name: str, rows: Any) -> None:
        """Put rows behind those of the prompt."""
        caches = self.caches.layers[layer]
        cache = caches.compressed if name == "compressor" else caches.index
        assert cache is not None
        first = PROMPT // TINY_512["compress_ratios"][layer]
        cache.write(rows, self._physical(cache, first, first + len(rows)))

    def step(self) -> None:
        """Decode one token."""
        import torch

        from hal.batch import Batch

        self.caches.reserve([(self.slot, self.position, self.position + 1)])
        batch = Batch.build([1], [self.position], [self.slot], self.model.device)
        streams = self.model(torch.tensor([TOKEN], device=self.model.device), batch, self.caches)
        self.logits = self.model.head_logits(streams)[0].cpu()
        self.position += 1

    def _physical(self, cache: Any, low: int, high: int) -> Any:
        import torch

        rows = torch.arange(low, high, device=self.model.device)
        return cache.physical(torch.full_like(rows, self.slot), rows)


class Theirs:
    """A transformers cache that is grown by hand."""

    def __init__(self, peer: Any, prompt: Any, context: int) -> None:
        self.peer = peer
        self.cache = peer(prompt[None], logits_to_keep=1, use_cache=True).past_key_values
        for layer in self.cache.layers:
            layer.cumulative_length += context - PROMPT

    def grow(self, layer: int, name: str, rows: Any) -> None:
        """Put rows behind those of the prompt."""
        self.cache.layers[layer].update_compressor_states(name, rows[None])

    def step(self) -> Any:
        """Decode one token; logits[vocab]."""
        import torch

        output = self.peer(torch.tensor([[TOKEN]]), past_key_values=self.cache, use_cache=True)
        return output.logits[0, -1]
