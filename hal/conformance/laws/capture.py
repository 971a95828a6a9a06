"""The law of kernels that declare `capturable`: a graph that records their calls may be replayed on other values.

A captured region allocates from the graph's own pool, which is reused at every replay. Outputs and scratch that go with
the call may come from there; what a kernel keeps may not, and has to be made by an earlier call.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hal.batch import Batch
from hal.binding import bind
from hal.conformance.laws.law import Law
from hal.conformance.samples import Sample
from hal.conformance.trial import Subject, Wrong
from hal.host import waits

__all__ = ["CAPTURED", "Watch", "host_reads"]

STAND_INS = ("triton.", "hal_emulators.")
"""Modules that compute in the chip's place: what they read the chip reads."""


@contextmanager
def host_reads() -> Iterator[Watch]:
    """What passes between host and device inside, by name, and the memory that is allocated."""
    with ExitStack() as stack:
        watch = stack.enter_context(Watch())
        for name in ("tolist", "numpy", "__array__", "cpu"):
            stack.enter_context(mock.patch.object(Tensor, name, _told(name, getattr(Tensor, name), watch.found)))
        yield watch


class Watch(TorchDispatchMode):
    """Sees every operator of torch: those that a graph cannot record, and what the others allocate."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.allocated: list[tuple[str, StorageWeakRef]] = []

    @property
    def kept(self) -> list[str]:
        """Operators whose memory is still in use."""
        return [name for name, storage in self.allocated if not storage.expired()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        made = func(*args, **kwargs)
        if not _stands_in():
            if waits(func, args, kwargs) or self._moved(name, args, kwargs):
                self.found.append(name.removeprefix("aten::"))
            given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for tensor in (x for x in tree_leaves(made) if isinstance(x, Tensor)):
                if tensor.untyped_storage()._cdata not in given:
                    self.allocated.append((name.removeprefix("aten::"), StorageWeakRef(tensor.untyped_storage())))
        return made

    @staticmethod
    def _moved(name: str, args: Any, kwargs: Any) -> bool:
        """Copies between host and device, either way; numbers alone go with a launch."""
        if name == "aten::lift_fresh":  # torch.tensor
            return bool(args[0].dim())
        if name == "aten::_to_copy":
            wanted = kwargs.get("device")
            return wanted is not None and (torch.device(wanted).type == "cpu") != (args[0].device.type == "cpu")
        return name == "aten::copy_" and (args[0].device.type == "cpu") != (args[1].device.type == "cpu")


def _told(name: str, method: Any, found: list[str]) -> Any:
    def call(self: Tensor, *arguments: Any, **words: Any) -> Any:
        if not _stands_in():
            found.append(name)
        return method(self, *arguments, **words)

    return call


def _stands_in() -> bool:
    """Whether this call comes out of an emulator."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(STAND_INS):
            return True
        frame = frame.f_back
    return False


def _captured(subject: Subject, sample: Sample) -> None:
    bound = bind(subject.plan(sample.call))[sample.call.title]
    arguments = sample.arguments(subject.target.device_type)
    with torch.no_grad():
        bound(*arguments)  # weights may be repacked once
        _forget(arguments)
        with host_reads() as watch:
            bound(*arguments)
    _forget(arguments)
    gc.collect()
    if watch.found:
        names = ", ".join(dict.fromkeys(watch.found))
        raise Wrong("law", f"declared capturable, and values pass between host and device: {names}")
    if watch.kept:
        names = ", ".join(dict.fromkeys(watch.kept))
        raise Wrong("law", f"declared capturable, and keeps memory that a captured region would allocate: {names}")


def _forget(arguments: tuple[Any, ...]) -> None:
    """Drop what was derived from batches: every step has one of its own."""
    for batch in arguments:
        if isinstance(batch, Batch):
            batch.__dict__.pop("_derived", None)


CAPTURED = Law(
    "captured",
    "Nothing passes between host and device, and nothing allocated stays, so that a graph can record the call.",
    _captured,
    lambda kernel, _: kernel.capturable,
)
