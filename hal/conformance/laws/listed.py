"""Laws of attention: entries that are listed, seen as a prefix, or doubled."""

from __future__ import annotations

from dataclasses import replace

import torch

from hal.conformance.laws.law import Law
from hal.conformance.samples import Sample
from hal.conformance.trial import Subject, judge
from hal.kernel import Kernel

__all__ = ["DENSE"]

MOST = 256
"""Longest list that is tried."""


def _dense(subject: Subject, sample: Sample) -> None:
    """A list of all visible entries is judged by what the visible prefix must give."""
    wanted = subject.expectation(sample)
    q, window, compressed, _, sink, batch = sample.arguments(subject.target.device_type)
    visible = batch.visible(sample.attributes["ratio"])
    width = int(visible.max()) if batch.tokens else 1
    every = torch.arange(max(width, 1), device=q.device).expand(batch.tokens, -1)
    rows = torch.where(every < visible[:, None], every, -1).int()
    call = sample.call
    call = replace(call, sizes={**call.sizes, "top_k": rows.shape[1]}, layouts={**call.layouts, "rows": "selected"})
    judge(wanted, subject.run(call, (q, window, compressed, rows, sink, batch)), "law")


def _prefix(kernel: Kernel, sample: Sample) -> bool:
    limited = any(c.kind == "dim" and c.name == "top_k" for c in kernel.constraints)
    return sample.attributes["ratio"] > 0 and "top_k" not in sample.sizes and not limited


DENSE = Law("dense", "Listing every visible entry is seeing the visible prefix.", _dense, _prefix)
