"""Records the operator calls of a run: what HAL_TRACE=capture@FOLDER puts around bound calls."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hal import ops
from hal.batch import Batch
from hal.cache import KVCache
from hal.conformance.arguments import same_bits, tensors
from hal.diagnosis.record import FORMAT, HEADER, LINES, Rows, Unrecordable, flat, pack, write
from hal.errors import CaptureError

if TYPE_CHECKING:
    from hal.planning import Choice
    from hal.target import Target

__all__ = ["WANTED", "Wanted", "prepare", "recorded"]

WANTED = "wanted.json"


@dataclass(frozen=True)
class Wanted:
    """How much to record: MiB in all, every how many calls of a use, and how many of each use (0: any number)."""

    limit: int = 256
    every: int = 1
    per_use: int = 0


def prepare(folder: Path, wanted: Wanted) -> None:
    """Make an empty folder for a run that will be recorded.

    Raises:
        CaptureError: it holds something already, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CaptureError("holds something already", where=str(folder), fix="name a new folder")
        (folder / WANTED).write_text(json.dumps(asdict(wanted)) + "\n")
    except OSError as error:
        raise CaptureError(f"cannot be made: {error}", where=str(folder), fix="name a folder that can be") from error


def recorded(bound: Callable[..., Any], choice: Choice, target: Target, folder: str) -> Callable[..., Any]:
    """`bound`, and a line and a file in `folder` for each call that is wanted."""
    recorder = _Recorder.at(Path(folder).absolute(), target)
    contract, use, count = choice.call.contract, choice.call.title, 0

    def call(*arguments: Any) -> Any:
        nonlocal count
        number, count = count, count + 1
        if not recorder.wants(use, number):
            return bound(*arguments)
        before = _Before(contract, arguments)
        outputs = bound(*arguments)
        recorder.add(choice, number, before, outputs)
        return outputs

    return call


class _Before:
    """The tensors of a call before it: copies of what it may change, and which pages and slots are its own."""

    def __init__(self, contract: str, arguments: Sequence[Any]) -> None:
        self.arguments = arguments
        self.names = [argument.name for argument in ops.get(contract).parsed.arguments]
        changed = {argument.name for argument in ops.get(contract).parsed.arguments if argument.mutated}
        self.tensors = dict(tensors(contract, arguments))
        self.copies = {
            p: x.detach().to("cpu", copy=True) for p, x in self.tensors.items() if p.split(".")[0] in changed
        }

    def kept(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What stands for the values of some paths, before the call and, where it changed them, after it."""
        before: dict[str, Any] = dict(self.copies)
        after: dict[str, Any] = {}
        for path, tensor in self.tensors.items():
            rows = self._own(path)
            old = self.copies.get(path)
            new = tensor.detach().to("cpu") if old is not None else None
            if rows is None:
                if old is not None and new is not None and not same_bits(old, new):
                    after[path] = new
                continue
            changed = torch.empty(0, dtype=torch.int64) if old is None or new is None else _changed(old, new)
            rows = torch.cat([rows, changed]).unique()
            whole = tensor.detach()
            values = old[rows] if old is not None else whole[rows.to(whole.device)].to("cpu")
            before[path] = Rows(values, rows, len(tensor))
            if new is not None and len(changed):
                after[path] = Rows(new[changed], changed, len(tensor))
        return before, after

    def _own(self, path: str) -> Tensor | None:
        """Rows of the first dimension that the call's requests own: pages of a cache, slots of a state."""
        name, _, field = path.partition(".")
        batch = next((value for value in self.arguments if isinstance(value, Batch)), None)
        if path.endswith("state.tensor") and batch is not None:
            return batch.slots.to("cpu")
        if field != "pages":
            return None
        cache: KVCache = self.arguments[self.names.index(name)]
        if batch is not None:
            pages: Tensor = cache.block_table[batch.slots].to("cpu").long().view(-1)
        elif "slots" in self.names:
            rows = self.arguments[self.names.index("slots")].to("cpu").long().view(-1)
            pages = torch.where(rows < 0, -1, torch.div(rows, cache.layout.block_size, rounding_mode="floor"))
        else:
            return None
        mapped: Tensor = pages[pages >= 0].unique()
        return mapped


def _changed(old: Tensor, new: Tensor) -> Tensor:
    """Rows whose bytes differ."""
    if not len(old) or not old[0].numel():
        return torch.empty(0, dtype=torch.int64)
    differ = (flat(old) != flat(new)).view(len(old), -1).any(1)
    return differ.nonzero()[:, 0]


class _Recorder:
    """Of one folder in this process."""

    _open: dict[Path, _Recorder] = {}  # noqa: RUF012

    @classmethod
    def at(cls, folder: Path, target: Target) -> _Recorder:
        if folder not in cls._open:
            cls._open[folder] = cls(folder, target)
        return cls._open[folder]

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.calls, self.bytes = folder, 0, 0
        self.seen: set[str] = set()
        self.taken: Counter[str] = Counter()
        self.refused: set[str] = set()
        header = {"format": FORMAT, "hal": version("hal-accel"), "target": target.asked, "emulated": target.emulated}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / WANTED
            self.wanted = Wanted(**json.loads(file.read_text())) if file.exists() else Wanted()
            with (folder / HEADER).open("x") as opened:
                opened.write(json.dumps(header | {"process": os.getpid()}) + "\n")
            self.lines = (folder / LINES).open("x", encoding="utf-8")
        except FileExistsError as error:
            what = "holds a capture already, of another run or of another process of this one"
            raise CaptureError(what, where=str(folder), fix="name a new folder") from error
        except (OSError, TypeError, ValueError) as error:
            raise CaptureError(
                f"cannot be written: {error}", where=str(folder), fix="name a folder that can be"
            ) from error

    def wants(self, use: str, number: int) -> bool:
        if use in self.refused or number % self.wanted.every:
            return False
        if self.wanted.per_use and self.taken[use] >= self.wanted.per_use:
            return False
        if self.bytes >= self.wanted.limit << 20:
            self.drop(use, f"{self.wanted.limit} MiB are full")
            return False
        return True

    def drop(self, use: str, why: str) -> None:
        """No more calls of a use; the capture says why."""
        self.refused.add(use)
        self._line({"dropped": use, "why": why})

    def add(self, choice: Choice, number: int, before: _Before, outputs: Any) -> None:
        call, found = choice.call, dict[str, Tensor]()
        kept, changed = before.kept()
        try:
            arguments = [pack(x, found, kept, n) for n, x in zip(before.names, before.arguments, strict=True)]
            returned = pack(outputs, found, {}, "outputs")
            after = {path: pack(value, found, {}, path) for path, value in changed.items()}
            attributes = {name: pack(value, found, {}, name) for name, value in call.attributes.items()}
        except Unrecordable as error:
            self.drop(call.title, str(error))
            return
        new = {name: tensor for name, tensor in found.items() if name not in self.seen}
        size = sum(tensor.nbytes for tensor in new.values())
        if self.bytes + size > self.wanted.limit << 20:
            self.drop(call.title, f"a call of {size / (1 << 20):.3g} MiB more would pass {self.wanted.limit} MiB")
            return
        write(self.folder, self.calls, new)
        words = {"sizes": call.sizes, "ranges": call.ranges, "dtypes": call.dtypes, "layouts": call.layouts}
        self._line(
            {
                "use": call.title,
                "count": number,
                "contract": call.contract,
                "version": ops.get(call.contract).version,
                "kernel": choice.winner,
                "decision": choice.decision,
                "call": {name: dict(value) for name, value in words.items()} | {"attributes": attributes},
                "arguments": arguments,
                "outputs": returned,
                "after": after,
                "new": sorted(new),
            }
        )
        self.seen |= new.keys()
        self.bytes += size
        self.calls += 1
        self.taken[call.title] += 1

    def _line(self, line: dict[str, Any]) -> None:
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
