"""Laws of batches: a token's result does not depend on what it was batched with, or how its prompt was cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hal import ops
from hal.batch import Batch
from hal.conformance.arguments import same_bits
from hal.conformance.laws.law import Law
from hal.conformance.samples import Sample
from hal.conformance.trial import Outcome, Subject, Wrong, judge
from hal.kernel import Kernel

__all__ = ["CHUNKS"]

CUT = 3
"""Tokens of a request's first chunk."""


@dataclass(frozen=True)
class _Piece:
    """Some tokens of the whole, and their batch where the contract has one; `turn` is its request's chunk."""

    low: int
    high: int
    batch: Batch | None = None
    turn: int = 0


def _chunked(subject: Subject, sample: Sample) -> None:
    """One call per chunk, every request's first before any second, state and cache carried on; judged as one call."""
    contract, device = sample.contract, subject.target.device_type
    wanted = subject.expectation(sample)
    whole = sample.arguments(device)
    arguments, found = list(whole), []
    for piece in sorted(_pieces(contract, whole), key=lambda piece: piece.turn):
        outcome = subject.run(_call(sample, piece), [_part(*pair, piece) for pair in _named(contract, arguments)])
        found.append((piece.low, outcome))
        for index, argument in enumerate(ops.get(contract).parsed.arguments):
            if argument.mutated:
                arguments[index] = outcome.arguments[index]
    outcomes = [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]
    if not outcomes:
        return
    together = Outcome(_joined(contract, outcomes), tuple(arguments))
    judge(wanted, together, "law")
    if subject.kernel.batch_invariant:
        outcome = subject.run(sample.call, sample.arguments(device))
        once = wanted.defined(outcome.outputs, outcome.arguments)
        for name, tensor in wanted.defined(together.outputs, together.arguments).items():
            if not same_bits(tensor, once[name]):
                raise Wrong("law", f"declared batch invariant, but bits of {name} depend on the batch")


def _pieces(contract: str, whole: Sequence[Any]) -> list[_Piece]:
    batch = next((value for value in whole if isinstance(value, Batch)), None)
    if batch is None:
        count = next(len(v) for (_, dims), v in _named(contract, whole) if dims[:1] in (("tokens",), ("rows",)))
        return [_Piece(low, high) for low, high in ((0, min(CUT, count)), (min(CUT, count), count)) if high > low]
    found, offset = [], 0
    for length, start, slot in zip(batch.lengths, batch.starts, batch.slots.tolist(), strict=True):
        for turn, (low, high) in enumerate(((0, min(CUT, length)), (min(CUT, length), length))):
            if high > low:
                one = Batch.build((high - low,), (start + low,), (slot,), batch.device)
                found.append(_Piece(offset + low, offset + high, one, turn))
        offset += length
    return found


def _named(contract: str, values: Sequence[Any]) -> list[tuple[tuple[str, tuple[str, ...]], Any]]:
    arguments = ops.get(contract).parsed.arguments
    return [((a.name, a.dims or ()), value) for a, value in zip(arguments, values, strict=True)]


def _part(argument: tuple[str, tuple[str, ...]], value: Any, piece: _Piece) -> Any:
    if isinstance(value, Batch):
        return piece.batch
    if isinstance(value, Tensor) and argument[1][:1] in (("tokens",), ("rows",)):
        return value[piece.low : piece.high]
    return value


def _call(sample: Sample, piece: _Piece) -> Any:
    """The call of a piece: dynamic sizes are its own."""
    sizes = {"tokens": piece.high - piece.low, "rows": piece.high - piece.low, "requests": 1}
    if piece.batch is not None and "ratio" in sample.attributes and "entries" in sample.dynamic:
        sizes["entries"] = len(piece.batch.entries(sample.attributes["ratio"]).index)
    call = sample.call
    return replace(call, ranges={name: (sizes[name], sizes[name]) for name in call.ranges})


def _joined(contract: str, outcomes: list[Outcome]) -> Any:
    """Outputs of all pieces behind each other; narrower scores are filled up with -inf."""
    returned = [o.outputs if isinstance(o.outputs, tuple | list) else (o.outputs,) for o in outcomes]
    joined: list[Tensor | None] = []
    for parts in zip(*returned, strict=True):
        if not all(isinstance(part, Tensor) for part in parts):
            joined.append(None)
            continue
        width = max(part.shape[-1] for part in parts)
        if contract == "attn.index_scores":
            parts = tuple(
                torch.nn.functional.pad(part, (0, width - part.shape[-1]), value=-torch.inf) for part in parts
            )
        joined.append(torch.cat(parts))
    return tuple(joined) if isinstance(outcomes[0].outputs, tuple | list) else joined[0]


def _several(kernel: Kernel, sample: Sample) -> bool:
    """More than one token; no size that the kernel cuts, of which a piece might be another kernel's."""
    tokens = sample.dynamic.get("tokens", sample.dynamic.get("rows", 0))
    return tokens > 1 and not any(c.kind == "dim" and c.name in sample.dynamic for c in kernel.constraints)


CHUNKS = Law(
    "chunks",
    "Requests in two chunks each, taken in turn, are one batch; bit for bit where batch invariance is declared.",
    _chunked,
    _several,
)
