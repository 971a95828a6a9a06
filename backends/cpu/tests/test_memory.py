"""Peak memory of long prompts, and a million tokens of context."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hal.batch import Batch
from hal.cost import cache_bytes
from hal.models.deepseek_v4 import Caches, DeepseekV4, DeepseekV4Config, save_checkpoint

MILLION = 1 << 20


def small(**changes: Any) -> DeepseekV4Config:
    """One layer of each kind, narrow."""
    fields: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "q_lora_rank": 16,
        "o_groups": 1,
        "o_lora_rank": 16,
        "compress_ratios": (0, 4, 128),
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 32,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_hash_layers": 0,
        "sliding_window": 128,
        "hc_mult": 2,
        "eos_token_ids": (),
    }
    return DeepseekV4Config(**{**fields, **changes})


PREFILL = """
import json, pathlib, sys
import torch
from test_memory import small
from hal.batch import Batch
from hal.models.deepseek_v4 import DeepseekV4

torch.set_num_threads(1)
model = DeepseekV4.random(small(), seed=0, backend="cpu")
peaks = {}
for tokens in json.loads(sys.argv[1]):
    caches = model.caches(tokens=tokens)
    slot = caches.open()
    caches.reserve([(slot, 0, tokens)])
    with torch.inference_mode():
        streams = model(torch.arange(tokens) % 64, Batch.build([tokens], [0], [slot]), caches)
        assert model.head_logits(streams[-1:]).isfinite().all()
    status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count the parent's memory, too
    peaks[tokens] = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    del caches, streams
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from Linux' /proc")
def test_peak_memory_of_a_prefill_grows_linearly() -> None:
    """One step, no chunks: twice the tokens may cost at most twice the memory beyond the process itself.

    The smallest size is large enough to hide what importing torch took for a moment.
    """
    sizes = [16384, 32768, 65536]
    done = subprocess.run(
        [sys.executable, "-c", PREFILL, json.dumps(sizes)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # freed tensors go back to the system: peaks are tensors
    )  # fmt: skip
    peaks = {int(tokens): peak for tokens, peak in json.loads(done.stdout.splitlines()[-1]).items()}
    print(peaks)
    slope = (peaks[32768] - peaks[16384]) / (32768 - 16384)
    assert (peaks[65536] - peaks[32768]) / (65536 - 32768) < 1.15 * slope


def fill(caches: Caches, slot: int, tokens: int) -> None:
    """Random rows as if `tokens` tokens had been computed; the last window's rows too."""
    generator = torch.Generator().manual_seed(1)
    caches.reserve([(slot, tokens - 127, tokens)])
    for layer in caches.layers:
        spans = [(layer.window, tokens - 127, tokens)]
        spans += [(cache, 0, tokens // ratio) for cache, ratio in _compressed(layer)]
        for cache, low, high in spans:
            for first in range(low, high, 1 << 16):
                row = torch.arange(first, min(high, first + (1 << 16)))
                values = torch.randn(len(row), cache.layout.head_dim, generator=generator)
                cache.write(values, cache.physical(torch.full_like(row, slot), row))


def _compressed(layer: Any) -> list[tuple[Any, int]]:
    if layer.compressed is None:
        return []
    return [(layer.compressed, 128)] if layer.index is None else [(layer.compressed, 4), (layer.index, 4)]


@pytest.mark.parametrize("quantised", [False, True], ids=["float32", "quantised"])
def test_a_million_tokens_of_context_can_be_decoded_from(tmp_path: Path, quantised: bool) -> None:
    """DeepSeek-V4's own row widths; the caches take the bytes that the layouts' sizes say."""
    config = small(
        head_dim=512, qk_rope_head_dim=64, index_head_dim=128, index_topk=512, hidden_size=128, q_lora_rank=128
    )
    model = DeepseekV4.random(config, seed=0, backend="cpu")
    if quantised:
        save_checkpoint(tmp_path, model)
        model = DeepseekV4.from_checkpoint(tmp_path, backend="cpu")
        assert model.simulate
    steps, said = 3, cache_bytes(config, model.numerics, MILLION)
    caches = model.caches(tokens=MILLION, chunk=128)
    rows = [cache for layer in caches.layers for cache, _ in _compressed(layer)]
    assert sum(cache.bytes for cache in rows) / MILLION == pytest.approx(said.per_token, rel=1e-3)
    assert caches.bytes == pytest.approx(said.total + said.padding, rel=5e-3)
    slot, start = caches.open(), MILLION - steps
    fill(caches, slot, start)
    with torch.inference_mode():
        for position in range(start, MILLION):
            caches.reserve([(slot, position, position + 1)])
            streams = model(torch.tensor([position % 64]), Batch.build([1], [position], [slot]), caches)
            assert model.head_logits(streams).isfinite().all()
