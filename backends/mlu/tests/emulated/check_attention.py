"""The ways to attend agree with each other and with plain torch, whatever the order of pages and requests; selection
by lengths of another meaning does not pass."""

from typing import Any

import pytest
import torch
from hal_mlu import attention, selection, tmo
from hal_plain.attention import attend as plain

from hal import Batch, KVCache
from hal.layouts import layout
from hal.numerics.contracts import expect
from hal.rope import Rope

HEADS, SCALE, WINDOW, RATIO = 8, 512**-0.5, 32, 4
LENGTHS, STARTS, SLOTS = [5, 0, 1, 40], [0, 3, 70, 20], [2, 0, 3, 1]


def cache(rows: int, seed: int) -> KVCache:
    """Pages in shuffled order, full of values."""
    made = KVCache.allocate(layout("rows_bf16", 512, 16), 4, rows, "mlu")
    generator = torch.Generator().manual_seed(seed)
    made.pages.copy_(torch.randn(made.pages.shape, generator=generator))
    order = torch.randperm(len(made.pages), generator=generator).int().to("mlu")
    return KVCache(made.layout, made.pages, order[made.block_table.long()])


@pytest.mark.parametrize("case", ["listed", "prefix", "window"])
@pytest.mark.parametrize("with_sink", [False, True])
def test_all_ways_agree(case: str, with_sink: bool) -> None:
    batch = Batch.build(LENGTHS, STARTS, SLOTS, "mlu")
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(batch.tokens, HEADS, 512, generator=generator).bfloat16().to("mlu")
    sink = torch.randn(HEADS, generator=generator).to("mlu") if with_sink else None
    window, compressed = cache(80, 1), cache(24, 2) if case != "window" else None
    rows = None
    if case == "listed":
        visible = batch.visible(RATIO).tolist()
        chosen = [torch.randperm(count, generator=generator)[:6] for count in visible]
        rows = torch.full((batch.tokens, 6), -1, dtype=torch.int32)
        for row, entries in enumerate(chosen):
            rows[row, : len(entries)] = entries
        rows = rows.to("mlu")
    words = {"scale": SCALE, "window_size": WINDOW, "ratio": RATIO if case != "window" else 0}
    arguments = (q, window, compressed, rows, sink, batch)
    wanted, wanted_lse = plain(*arguments, **words)
    ways = [attention.attend_merged]
    ways += [attention.attend_window] if compressed is None else [attention.attend_fused, attention.attend_joined]
    for way in ways:
        out, lse = way(*arguments, **words)
        torch.testing.assert_close(out.cpu().float(), wanted.cpu().float(), rtol=2**-7, atol=2**-8)
        if lse is not None:
            torch.testing.assert_close(lse.cpu(), wanted_lse.cpu(), rtol=1e-5, atol=1e-5)


def selecting() -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of `attn.select` that must choose 6 of 9 to 12 entries."""
    generator = torch.Generator().manual_seed(5)
    batch = Batch.build([1, 2], [50, 36], [1, 0], "mlu")
    index = KVCache.allocate(layout("index_bf16_mxfp4", 128, 16), 2, 24, "mlu")
    index.pages.copy_(torch.randn(index.pages.shape, generator=generator))
    q = torch.randn(batch.tokens, 4, 128, generator=generator).bfloat16().to("mlu")
    weights = torch.rand(batch.tokens, 4, generator=generator).to("mlu")
    arguments = (q, weights, Rope(64, 160000.0, 16.0, 65536), batch, index)
    return arguments, {"top_k": 6, "ratio": RATIO, "hadamard": True, "scale": 128**-0.5}


def test_lengths_after_compression_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Legal numbers, which the vendor cannot refuse: the choice that the stand-in makes of them is judged wrong."""
    arguments, words = selecting()
    verdict = expect("attn.select", arguments, words).judge((selection.select(*arguments, **words),), arguments)
    assert verdict, verdict.text
    operator = tmo.operator("masked_indexer_select_paged_kv")

    def planted(k_context_lens: torch.Tensor, compress_ratio: int, **words: Any) -> Any:
        return operator(k_context_lens=k_context_lens // compress_ratio, compress_ratio=compress_ratio, **words)

    monkeypatch.setattr(tmo, "operator", lambda name: planted)
    assert not expect("attn.select", arguments, words).judge((selection.select(*arguments, **words),), arguments)
