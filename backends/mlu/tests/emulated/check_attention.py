"""The ways to attend agree with each other and with plain torch, whatever the order of pages and requests."""

import pytest
import torch
from hal_mlu import attention
from hal_plain.attention import attend as plain

from hal import Batch, KVCache
from hal.layouts import layout

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
