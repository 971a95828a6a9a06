"""Every law holds for the references and notices a kernel that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch

from hal.cache import KVCache
from hal.conformance.laws import Law, laws_of
from hal.conformance.laws.listed import DENSE
from hal.conformance.laws.memory import INERT_GARBAGE, PERMUTED_PAGES, ROUND_TRIP, SPREAD_OUT
from hal.conformance.laws.pieces import CHUNKS
from hal.conformance.laws.slots import REVERSED_TOKENS, UNUSED_SLOTS
from hal.conformance.mutants.attention import ignored_page_stride
from hal.conformance.mutants.compression import short_chunk_forgotten
from hal.conformance.mutants.experts import unused_slot_computed
from hal.conformance.samples import Sample, samples
from hal.conformance.trial import Outcome, Subject, Wrong
from hal.kernel import Kernel
from hal.ops import CONTRACTS
from hal.planning import Call
from hal.reference import attention, experts
from hal.target import Target

LAWS = (PERMUTED_PAGES, INERT_GARBAGE, SPREAD_OUT, ROUND_TRIP, CHUNKS, DENSE, UNUSED_SLOTS, REVERSED_TOKENS)


class Bare(Subject):
    """A function instead of a planned kernel."""

    def __init__(self, contract: str, function: Callable[..., Any], **flags: bool) -> None:
        super().__init__(Kernel("bare", contract, "bare:bare", **flags), Target("cpu", "cpu"))  # type: ignore[arg-type]
        object.__setattr__(self, "function", function)

    def run(self, call: Call, arguments: Sequence[Any]) -> Outcome:
        arguments = tuple(arguments)
        return Outcome(self.function(*arguments, **call.attributes), arguments)  # type: ignore[attr-defined]


def reference(contract: str) -> Callable[..., Any]:
    module, name = CONTRACTS[contract].reference.split(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def first(contract: str, law: Law, words: str = "") -> Sample:
    kernel = Kernel("bare", contract, "bare:bare")
    return next(s for s in samples(contract) if words in s.title and law.applies(kernel, s) and not s.once)


def of_table(q: torch.Tensor, window: KVCache, *rest: Any, **attributes: Any) -> Any:
    out, lse = attention.attend(q, window, *rest, **attributes)
    return out + 1e-3 * window.block_table[0, 0], lse


def of_garbage(q: torch.Tensor, window: KVCache, *rest: Any, **attributes: Any) -> Any:
    out, lse = attention.attend(q, window, *rest, **attributes)
    return out + 1e-6 * window.pages.float().nan_to_num().sum(), lse


def last_row_forgotten(q: torch.Tensor, window: KVCache, far: Any, rows: Any, *rest: Any, **attributes: Any) -> Any:
    return attention.attend(q, window, far, None if rows is None else rows[:, :-1], *rest, **attributes)


def of_place(logits: torch.Tensor, *rest: Any, **attributes: Any) -> Any:
    weights, chosen = experts.route(logits, *rest, **attributes)
    return weights * (1 + 0.01 * torch.arange(len(weights)))[:, None], chosen


@pytest.mark.parametrize(
    ("law", "contract", "words", "broken"),
    [
        (PERMUTED_PAGES, "attn.attend", "prefill", of_table),
        (INERT_GARBAGE, "attn.attend", "prefill", of_garbage),
        (SPREAD_OUT, "attn.attend", "prefill", ignored_page_stride),
        (CHUNKS, "attn.compress_pool", "prefill", short_chunk_forgotten),
        (DENSE, "attn.attend", "hca/mixed/float32/rows_f32", last_row_forgotten),
        (UNUSED_SLOTS, "moe.ffn", "spread", unused_slot_computed),
        (REVERSED_TOKENS, "moe.route", "tokens=33", of_place),
    ],
    ids=lambda value: value.name if isinstance(value, Law) else None,
)
def test_a_law_holds_and_notices(law: Law, contract: str, words: str, broken: Callable[..., Any]) -> None:
    sample = first(contract, law, words)
    law.holds(Bare(contract, reference(contract)), sample)
    with pytest.raises(Wrong):
        law.holds(Bare(contract, broken), sample)


def test_rows_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = first("attn.store", ROUND_TRIP, "v4_584")
    subject = Bare("attn.store", reference("attn.store"))
    ROUND_TRIP.holds(subject, sample)
    write = KVCache.write
    monkeypatch.setattr(KVCache, "write", lambda cache, values, physical: write(cache, values * 1.01, physical))
    with pytest.raises(Wrong, match="do not read back"):
        ROUND_TRIP.holds(subject, sample)


def test_declared_batch_invariance_is_held_to_every_bit() -> None:
    sample = first("quant.matmul", CHUNKS, "tokens=7/256x384/float32")
    matmul = reference("quant.matmul")

    def other_order_for_few(x: torch.Tensor, weight: Any, **attributes: Any) -> torch.Tensor:
        return matmul(x, weight, **attributes) * (1 + 2.0**-23 * (len(x) > 4))  # type: ignore[no-any-return]

    CHUNKS.holds(Bare("quant.matmul", other_order_for_few), sample)
    with pytest.raises(Wrong, match="declared batch invariant"):
        CHUNKS.holds(Bare("quant.matmul", other_order_for_few, batch_invariant=True), sample)


def test_every_law_belongs_to_a_contract_and_says_what_it_is() -> None:
    named = {law.name: law for contract in CONTRACTS for law in laws_of(contract)}
    assert set(named.values()) == set(LAWS)
    assert all(law.says.endswith(".") for law in LAWS)
