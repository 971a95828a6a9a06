"""A race detector for code that uses several streams of a device, on CPU tensors.

`with races() as found:` gives torch's CPU streams what real ones have, an order of their own: a vector clock per stream
that `wait_stream` and events join. Every operator's reads and writes are remembered by storage; two accesses of one
storage, at least one of them a write, that no wait orders are a race. Rows of one storage are not told apart.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Race", "races"]


@dataclass(frozen=True)
class Race:
    """Two operators on different streams that nothing orders; `where` is the later one's place in the source."""

    first: str
    second: str
    where: str

    def __str__(self) -> str:
        return f"{self.second} ({self.where}) races with {self.first} on another stream"


class Stream:
    """A stream with a vector clock: how far it is, and how far it knows others to be."""

    def __init__(self, *_: Any) -> None:
        self.clock: dict[int, int] = {id(self): 0}

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def record_event(self, *_: Any) -> dict[int, int]:
        return dict(self.clock)

    def wait_event(self, event: dict[int, int]) -> None:
        for stream, time in event.items():
            self.clock[stream] = max(time, self.clock.get(stream, 0))

    def knows(self, access: _Access) -> bool:
        """Whether everything that is issued now comes after an access."""
        return self.clock.get(access.stream, -1) >= access.time


@dataclass(frozen=True)
class _Access:
    stream: int
    time: int
    what: str


@dataclass
class _Storage:
    """The last write, and the reads behind it. `kept`: an address is not given out twice while it is looked at."""

    kept: Any
    write: _Access | None = None
    reads: list[_Access] = field(default_factory=list)


class _Device:
    """What `torch.get_device_module` gives: streams that take turns on the host and know their order."""

    def __init__(self) -> None:
        self.now = Stream()

    Stream = Stream

    def current_stream(self, *_: Any) -> Stream:
        return self.now

    def stream(self, stream: Stream) -> AbstractContextManager[None]:
        return self._on(stream)

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before


class _Watch(TorchDispatchMode):
    def __init__(self, device: _Device) -> None:
        super().__init__()
        self.device = device
        self.found: list[Race] = []
        self.storages: dict[int, _Storage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema
        written: list[Tensor] = []
        read: list[Tensor] = []
        for number, argument in enumerate(schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
            write = argument.alias_info is not None and argument.alias_info.is_write
            (written if write else read).extend(tensors)
        views = any(one.alias_info is not None for one in schema.returns)
        if views and not written:
            return result  # a view reads nothing
        if not views:
            written += [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        stream = self.device.now
        stream.clock[id(stream)] += 1
        access = _Access(id(stream), stream.clock[id(stream)], str(func))
        for tensor in filter(_stored, read):
            self._read(tensor, access, stream)
        for tensor in filter(_stored, written):
            self._write(tensor, access, stream)
        return result

    def _storage(self, tensor: Tensor) -> _Storage:
        kept = tensor.untyped_storage()
        return self.storages.setdefault(kept.data_ptr(), _Storage(kept))

    def _read(self, tensor: Tensor, access: _Access, stream: Stream) -> None:
        storage = self._storage(tensor)
        self._ordered(storage.write, access, stream)
        storage.reads.append(access)

    def _write(self, tensor: Tensor, access: _Access, stream: Stream) -> None:
        storage = self._storage(tensor)
        for before in (storage.write, *storage.reads):
            self._ordered(before, access, stream)
        storage.write, storage.reads = access, []

    def _ordered(self, before: _Access | None, access: _Access, stream: Stream) -> None:
        if before is not None and not stream.knows(before):
            frames = [x for x in traceback.extract_stack() if "/torch/" not in x.filename and x.filename != __file__]
            self.found.append(Race(before.what, access.what, f"{frames[-1].filename}:{frames[-1].lineno}"))


def _stored(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > 0


@contextmanager
def races() -> Iterator[list[Race]]:
    """The races of what runs inside, in the order in which they were found."""
    device = _Device()
    with mock.patch("torch.get_device_module", return_value=device), _Watch(device) as watch:
        yield watch.found
