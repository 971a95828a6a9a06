"""`hal bench prefill`: a prompt through `hal` and through transformers."""

from __future__ import annotations

from typing import Any

from hal.bench.peer import pair
from hal.bench.result import Comparison, interleaved
from hal.models.deepseek_v4 import DeepseekV4

CHUNK = 1024  # new tokens per step of `hal`; transformers has no chunked prefill of its own


def prefill(
    tokens: int = 4096, *, rounds: int = 2, backend: str | None = None, threads: int | None = None
) -> Comparison:
    """Seconds until the logits of the last of `tokens` prompt tokens are there, and how far both sides' logits differ.

    Args:
        tokens: length of the prompt; transformers' memory grows with its square (about 9 GB at 8192).
        rounds: measured runs of each side, after a short one of both that warms up.
        backend: as `HAL_BACKEND`.
        threads: of torch, in both; by default torch's own choice.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        model, peer = pair(backend)
        ids = torch.randint(0, model.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(1))
        logits: dict[str, Any] = {}

        def ours(prompt: torch.Tensor = ids) -> None:
            logits["hal"] = run(model, prompt)

        def theirs(prompt: torch.Tensor = ids) -> None:
            logits["peer"] = peer(prompt[None], logits_to_keep=1).logits[0, 0]

        with torch.inference_mode():
            ours(ids[:CHUNK])
            theirs(ids[:CHUNK])
            mine, peers = interleaved(rounds, ours, theirs)
        difference = float((logits["hal"] - logits["peer"]).abs().max())
        return Comparison(
            f"prefill of {tokens} tokens", "transformers", mine, peers, torch.get_num_threads(), difference
        )
    finally:
        torch.set_num_threads(before)


def run(model: DeepseekV4, ids: Any) -> Any:
    """Prefill the prompt in chunks, into fresh caches; logits[vocab] of its last token."""
    from hal.batch import Batch

    tokens = len(ids)
    caches = model.caches(tokens=tokens, chunk=min(CHUNK, tokens))
    slot = caches.open()
    for start in range(0, tokens, CHUNK):
        length = min(CHUNK, tokens - start)
        caches.reserve([(slot, start, start + length)])
        batch = Batch.build([length], [start], [slot], model.device)
        streams = model(ids[start : start + length].to(model.device), batch, caches)
    return model.head_logits(streams[-1:])[0]
