"""`hal bisect` on planted faults: one operator, two that only fail together, one that needs 3,000 tokens to appear."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hal.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
HAL = [sys.executable, "-m", "hal"]
GENERATE = [*HAL, "generate", str(ROOT / "examples" / "tiny-v4"), "--prompt", "The ex", "--max-new-tokens", "8"]


def bisected(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit code of `hal bisect --json`, and what it says."""
    result = CliRunner().invoke(app, ["bisect", "--json", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


SINKLESS = """
from hal_cpu import attention


def attend(q, window, compressed, rows, sink, batch, **words):
    return attention.attend(q, window, compressed, rows, None, batch, **words)
"""


def test_one_wrong_operator(acme: Callable[..., Path]) -> None:
    """Attention without its sink writes another text; nothing raises."""
    acme(SINKLESS, "attend")
    code, found = bisected("--output", "--", *GENERATE)
    assert code == 0
    (guilty,) = found["guilty"]
    assert guilty["operators"] == ["attn.attend"]
    first = guilty["first"]
    assert (first["call"], first["number"], first["kernel"]) == ("swa.attend", 0, "acme.attend")
    assert "differs from the reference in call 0" in first["text"]
    assert found["workaround"] == "HAL_OPS='attn.attend=reference.*' HAL_ALLOW=reference,unverified"
    assert len(found["tried"]) <= 10


WORKSPACE = """
import torch

from hal_cpu import experts, matmul as products

WORKSPACE = torch.empty(1 << 20)


def route(*arguments, **words):
    weights, chosen = experts.route(*arguments, **words)
    kept = WORKSPACE[: weights.numel()].view_as(weights)
    return kept.copy_(weights), chosen


def matmul(*arguments, **words):
    product = products.matmul(*arguments, **words)
    WORKSPACE[: product.numel()] = product.flatten()
    return product
"""


def test_two_operators_that_fail_only_together(acme: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Routing weights stay in a workspace that the next product uses as scratch, before moe.ffn reads them."""
    acme(WORKSPACE, "route", "matmul")
    monkeypatch.setenv("HAL_OPS", "attn.attend=reference.*;attn.*=!acme.select|*")
    monkeypatch.setenv("HAL_ALLOW", "reference,unverified")
    code, found = bisected("--output", "--", *GENERATE)
    assert code == 0
    (guilty,) = found["guilty"]
    assert sorted(guilty["operators"]) == ["moe.route", "quant.matmul"]
    assert guilty["first"] is None
    assert guilty["right"]["route.top_k"] > 0
    assert guilty["right"]["linear.w1"] > 0
    assert "No call is wrong by itself" in found["answer"]
    assert "attn.index_scores" in found["operators"]
    assert "HAL_OPS='moe.route=reference.*;attn.attend=reference.*;attn.*=!acme.select|*'" in found["answer"]


WRAPS = """
from hal_cpu import selection


def select(*arguments, **words):
    rows = selection.select(*arguments, **words)
    return rows.where(rows < 750, rows - 750)
"""

PREFILL = """
import sys
import torch
from hal.batch import Batch
from hal.models.deepseek_v4 import DeepseekV4, DeepseekV4Config

CHUNK = 512
config = DeepseekV4Config(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=32, qk_rope_head_dim=16,
    q_lora_rank=16, o_groups=1, o_lora_rank=16, compress_ratios=(0, 4), index_n_heads=2, index_head_dim=16,
    index_topk=32, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, num_hash_layers=0, hc_mult=2,
)


def logits(tokens, backend=None):
    model = DeepseekV4.random(config, seed=0, backend=backend)
    ids = torch.randint(0, 64, (tokens,), generator=torch.Generator().manual_seed(0))
    caches = model.caches(tokens=tokens, chunk=CHUNK)
    slot = caches.open()
    with torch.inference_mode():
        for start in range(0, tokens, CHUNK):
            piece = ids[start : start + CHUNK]
            caches.reserve([(slot, start, start + len(piece))])
            streams = model(piece, Batch.build([len(piece)], [start], [slot]), caches)
        return model.head_logits(streams)


if __name__ == "__main__":
    sys.exit(not torch.allclose(logits(int(sys.argv[1])), torch.load(sys.argv[2]), atol=1e-3))
"""


def test_a_fault_that_needs_3000_tokens(acme: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexer's entries wrap at 750, which is token 3,000: chunks of 512 tokens are right up to number 5."""
    folder = acme(WRAPS, "select")
    (folder / "prefill.py").write_text(PREFILL)
    monkeypatch.syspath_prepend(folder)
    prefill = importlib.import_module("prefill")
    for tokens in (2900, 3100):
        torch.save(prefill.logits(tokens, "reference"), folder / f"{tokens}.pt")
    script = [sys.executable, str(folder / "prefill.py")]
    code, found = bisected("--", *script, "2900", str(folder / "2900.pt"))
    assert (code, found["runs"], found["guilty"]) == (1, 1, [])
    assert "As it is the command is good: exit code 0" in found["answer"]

    code, found = bisected("--", *script, "3100", str(folder / "3100.pt"))
    assert code == 0
    (guilty,) = found["guilty"]
    assert guilty["operators"] == ["attn.select"]
    assert (guilty["first"]["call"], guilty["first"]["number"]) == ("index.select", 5)
    assert guilty["right"] == {"index.select": 5}
    assert found["workaround"].startswith("HAL_OPS='attn.select=!*;attn.index_scores=reference.*'")
