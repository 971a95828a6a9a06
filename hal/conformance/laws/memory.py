"""Laws of memory: where rows lie, and what lies where nobody may look, changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hal.cache import KVCache
from hal.conformance.arguments import rebuilt, same_bits, spread
from hal.conformance.laws.law import Law
from hal.conformance.samples import Sample
from hal.conformance.trial import Subject, Wrong, judge
from hal.kernel import Kernel

__all__ = ["INERT_GARBAGE", "PERMUTED_PAGES", "ROUND_TRIP", "SPREAD_OUT"]


def _has_cache(kernel: Kernel, sample: Sample) -> bool:
    return "cache" in sample.layouts or "window" in sample.layouts


def _permuted(subject: Subject, sample: Sample) -> None:
    device = subject.target.device_type
    plain, moved = sample.arguments(device), sample.arguments(device)
    outcome = subject.run(sample.call, plain).tensors(sample.contract)
    other = subject.run(sample.call, [_reversed_pages(value) for value in moved]).tensors(sample.contract)
    for name, tensor in outcome.items():
        same = other[name].flip(0) if name.endswith(".pages") else other[name]
        if not name.endswith(".block_table") and not same_bits(tensor, same):
            raise Wrong("law", f"{name} depends on which pages rows lie in")


def _reversed_pages(value: Any) -> Any:
    """The same cache with its pages in reverse."""
    if not isinstance(value, KVCache):
        return value
    table, last = value.block_table, len(value.pages) - 1
    return replace(value, pages=value.pages.flip(0), block_table=torch.where(table >= 0, last - table, table).int())


def _inert(subject: Subject, sample: Sample) -> None:
    wanted = subject.expectation(sample, sample.arguments(garbage=1e4))
    judge(wanted, subject.run(sample.call, sample.arguments(subject.target.device_type, garbage=1e4)), "law")


def _spread(subject: Subject, sample: Sample) -> None:
    wanted = subject.expectation(sample)
    arguments = rebuilt(sample.contract, sample.arguments(subject.target.device_type), spread)
    judge(wanted, subject.run(sample.call, arguments), "law")


def _round_trip(subject: Subject, sample: Sample) -> None:
    values, *_, slots, cache = sample.arguments(subject.target.device_type)
    kept, wide = slots[slots >= 0], values[slots >= 0].float()
    cache.write(wide, kept)
    if not same_bits(cache.read(kept).cpu(), cache.layout.quantize_rows(wide.cpu(), torch.float32)):
        raise Wrong("law", f"rows of {cache.layout.name} do not read back as their quantiser rounds them")


PERMUTED_PAGES = Law(
    "permuted pages", "Results do not depend on which pages rows lie in, bit for bit.", _permuted, _has_cache
)
INERT_GARBAGE = Law("inert garbage", "Large numbers instead of NaN in memory that nobody wrote change nothing.", _inert)
ROUND_TRIP = Law("round trip", "Rows read back as their layout's quantiser rounds them, bit for bit.", _round_trip)
SPREAD_OUT = Law(
    "strides", "Rows with gaps between them, and pages that lie apart, are read and written where they are.", _spread
)
