"""Which operator a batch goes to, and what the ring of a request may not be used for."""

import pytest
import torch
import torch_mlu_ops as tmo
from hal_mlu import compression
from hal_mlu.compression import Apart

from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.layouts import layout
from hal.numerics.contracts import expect
from hal.rope import Rope

D = "mlu"
WORDS = {"ratio": 4, "overlap": True, "hadamard": True, "eps": 1e-6}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the compressor's operators, in the order of their calls."""
    names: list[str] = []
    operator = compression.tmo.operator
    monkeypatch.setattr(compression.tmo, "operator", lambda name: (names.append(name), operator(name))[1])
    return names


@pytest.mark.parametrize("name", ["rows_bf16", "index_bf16_mxfp4"])
def test_a_prompt_in_chunks_then_tokens(name: str, called: list[str]) -> None:
    """Prefill, a chunk, and decoding of two requests that are not in the order of their slots."""
    torch.manual_seed(0)
    weights = [torch.randn(256, 64).bfloat16().to(D) / 8 for _ in range(2)]
    ape, norm = torch.randn(4, 256).to(D), torch.ones(128, dtype=torch.bfloat16).to(D)
    cache = KVCache.allocate(layout(name, 128, 16), 2, 64, D)
    state = StateCache.allocate(2, 4, True, 128, device=D)
    for lengths, starts, operator in (((21, 3), (0, 0), "multi"), ((5, 0), (21, 3), "multi"), *DECODED):
        batch = Batch.build(lengths, starts, (1, 0), D)
        x = torch.randn(batch.tokens, 64).bfloat16().to(D)
        arguments = (x, *weights, ape, norm, Rope(64, 160000.0, 16.0, 65536), batch, state, cache)
        wanted = expect("attn.compress", arguments, WORDS)
        called.clear()
        compression.compress(*arguments, **WORDS)
        assert called[0] == f"fused_compress_{operator}_kv"
        verdict = wanted.judge((), arguments)
        assert verdict, verdict.text


DECODED = [((1, 1), (26 + step, 3 + step), "single") for step in range(6)]


def test_a_ring_holds_what_a_request_needs_or_gets_pages_of_its_own() -> None:
    assert Apart.of(Batch.build([1], [1001], [0]), 4, True, 8) is None
    assert Apart.of(Batch.build([8], [0], [0]), 4, True, 8) is None
    apart = Apart.of(Batch.build([9, 1], [6, 2], [3, 0]), 4, True, 8)
    assert apart is not None
    assert apart.table.tolist() == [[0, 1], [2, -1]]
    assert [part.tolist() for part in apart.kept] == [[3, 3, 3, 3, 3, 3, 0, 0], [0, 1, 2, 3, 4, 5, 0, 1]]
    assert [part.tolist() for part in apart.ring] == [[3] * 8 + [0], [7, 0, 1, 2, 3, 4, 5, 6, 2]]


def test_the_stand_in_shows_what_a_ring_would_lose() -> None:
    """Nine tokens over a ring of eight rows: the last one overwrites the first before windows are pooled."""
    torch.manual_seed(0)
    kv, score = torch.randn(9, 256).to(D), torch.randn(9, 256).to(D)
    found = []
    for blocks in (1, 2):
        table = torch.tensor([[0, blocks - 1]], dtype=torch.int32, device=D)
        made = torch.empty(2, 128, device=D)
        tmo.fused_compress_multi_kv(
            kv, score, torch.zeros(2, 8, 512, device=D), table, torch.tensor([0, 9], dtype=torch.int32, device=D),
            torch.arange(9, dtype=torch.int32, device=D), torch.zeros(4, 256, device=D), 9, True, made,
        )  # fmt: skip
        found.append(made.cpu())
    assert not torch.allclose(found[0][0], found[1][0])
