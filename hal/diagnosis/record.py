"""Arguments and results of calls as files: JSON for structure, safetensors for tensors, no pickle.

```
FOLDER/capture.json          format, hal's version, the chip
FOLDER/calls.jsonl           a line per call: operator, kernel, attributes, structure of arguments and outputs
FOLDER/000012.safetensors    the tensors of call 12 that no call before had, named by the hash of their content
```

A tensor is written once, however many calls see it, and its name says whether it was read back whole. Of caches and
states only the pages and slots are kept that the call's requests own or that it changed; a replay finds all bits set in
the others, which nobody may read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hal import ops
from hal.batch import Batch
from hal.cache import KVCache, StateCache
from hal.dispatched import Dispatched
from hal.errors import CaptureError, HalError
from hal.formats import PackedWeight, Quantized
from hal.layouts import Layout
from hal.planning import Call
from hal.rope import Rope

__all__ = [
    "FORMAT",
    "HEADER",
    "LINES",
    "Capture",
    "Recorded",
    "Rows",
    "Unrecordable",
    "flat",
    "name_of",
    "pack",
    "write",
]

FORMAT = 1
HEADER, LINES = "capture.json", "calls.jsonl"

_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (KVCache, StateCache, PackedWeight, Quantized, Dispatched, Layout, Rope)
}


class Unrecordable(Exception):
    """An argument that means nothing in another process."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor's first dimension, out of `of`."""

    values: Tensor
    rows: Tensor
    of: int


def name_of(tensor: Tensor) -> str:
    """Of a tensor's content, dtype and shape."""
    head = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return hashlib.sha256(head + flat(tensor).numpy().tobytes()).hexdigest()[:32]


def flat(tensor: Tensor) -> Tensor:
    """The bytes, uint8 [bytes]."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def pack(value: Any, found: dict[str, Tensor], instead: Mapping[str, Any], path: str) -> Any:
    """`value` as JSON; its tensors, on the host, are put in `found` by name. `instead` has what stands for some paths.

    Raises:
        Unrecordable: something that cannot be written.
    """
    value = instead.get(path, value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Rows):
        return {"rows": pack(value.rows, found, {}, ""), "values": pack(value.values, found, {}, ""), "of": value.of}
    if isinstance(value, Tensor):
        host = value.detach().to("cpu").contiguous()
        name = name_of(host)
        found[name] = host
        return {"tensor": name, "dtype": str(host.dtype).removeprefix("torch."), "shape": list(host.shape)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Batch):
        return {"batch": [list(value.lengths), list(value.starts), value.slots.tolist()]}
    if isinstance(value, tuple | list):
        return {"items": [pack(inner, found, instead, f"{path}.{number}") for number, inner in enumerate(value)]}
    if is_dataclass(value) and type(value).__name__ in _TYPES:
        inner = {
            f.name: pack(getattr(value, f.name), found, instead, f"{path}.{f.name}") for f in fields(value) if f.init
        }
        return {"type": type(value).__name__, "fields": inner}
    raise Unrecordable(f"{path or 'an argument'} is a {type(value).__name__}, which only this process has")


def write(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of call `number`."""
    plain = {name: x.view(torch.uint8) if x.dtype == torch.float8_e8m0fnu else x for name, x in tensors.items()}
    save_file(plain, folder / _file(number))


def _file(number: int) -> str:
    return f"{number:06}.safetensors"


@dataclass(frozen=True)
class Recorded:
    """One call of a capture.

    Attributes:
        number: of the call in the capture.
        use: of the model, the title of its plan entry.
        count: which call of that use it was.
        kernel: that served it.
    """

    capture: Capture
    number: int
    line: Mapping[str, Any]

    @property
    def contract(self) -> str:
        return str(self.line["contract"])

    @property
    def use(self) -> str:
        return str(self.line["use"])

    @property
    def count(self) -> int:
        return int(self.line["count"])

    @property
    def kernel(self) -> str:
        return str(self.line["kernel"])

    @property
    def title(self) -> str:
        """The use, and which call of it."""
        return f"{self.use}, call {self.count}"

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.call.attributes

    @property
    def layouts(self) -> Mapping[str, str]:
        return self.call.layouts

    @property
    def call(self) -> Call:
        """To be planned on another chip: the static facts that the run planned with."""
        words = self.line["call"]
        ranges = {name: (low, high) for name, (low, high) in words["ranges"].items()}
        attributes = {name: self.capture.unpack(value) for name, value in words["attributes"].items()}
        return Call(self.contract, self.use, words["sizes"], ranges, words["dtypes"], words["layouts"], attributes)

    def arguments(self, device: torch.device | str = "cpu", *, after: bool = False) -> tuple[Any, ...]:
        """Fresh arguments, as they were before the call, or as the recorded kernel left them.

        Raises:
            CaptureError: the files do not hold them.
        """
        names = [argument.name for argument in ops.get(self.contract).parsed.arguments]
        changes = self.line["after"] if after else {}
        with self.capture.reading(self.number):
            values = zip(names, self.line["arguments"], strict=True)
            return tuple(self.capture.unpack(value, device, name, changes) for name, value in values)

    def outputs(self) -> Any:
        """What the recorded kernel returned, on the host."""
        with self.capture.reading(self.number):
            return self.capture.unpack(self.line["outputs"])


class _Reading:
    """Whatever goes wrong while a call is read back is one error that names the file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CaptureError):
            text = error.what if isinstance(error, HalError) else f"{type(error).__name__}: {error}"
            raise CaptureError(f"cannot be read: {text}", where=self.where, fix="record it again") from error


class Capture:
    """A capture's folder, read.

    Raises:
        CaptureError: it is not one, or damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        header = self._json(HEADER)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            said = header.get("format") if isinstance(header, dict) else None
            self._fail(HEADER, f"is of format {said!r}, and this version of hal reads {FORMAT}")
        self.target, self.hal = str(header.get("target")), str(header.get("hal"))
        self.emulated = bool(header.get("emulated"))
        self.calls: list[Recorded] = []
        self.dropped: dict[str, str] = {}
        self._files: dict[str, str] = {}
        for line in self._lines():
            if "dropped" in line:
                self.dropped[str(line["dropped"])] = str(line.get("why"))
                continue
            self._check(line)
            call = Recorded(self, len(self.calls), line)
            self._files.update(dict.fromkeys(line["new"], _file(call.number)))
            self.calls.append(call)

    def reading(self, number: int) -> _Reading:
        """Guards the reading of a call."""
        return _Reading(f"{self.folder / LINES}, call {number}")

    def unpack(
        self, value: Any, device: torch.device | str = "cpu", path: str = "", after: Mapping[str, Any] = {}
    ) -> Any:
        """The inverse of `pack`; `after` has other rows or values for some paths."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if "of" in value:
            return self._rows(value, after.get(path), device)
        if "tensor" in value:
            return self._tensor(after.get(path, value)).to(device)
        if "dtype" in value:
            return _dtype(value["dtype"])
        if "batch" in value:
            lengths, starts, slots = value["batch"]
            return Batch.build(lengths, starts, slots, device)
        if "items" in value:
            return tuple(self.unpack(x, device, f"{path}.{number}", after) for number, x in enumerate(value["items"]))
        inner = value["fields"].items()
        return _TYPES[value["type"]](**{name: self.unpack(x, device, f"{path}.{name}", after) for name, x in inner})

    def _rows(self, value: Mapping[str, Any], changed: Mapping[str, Any] | None, device: torch.device | str) -> Tensor:
        rows = self._tensor(value["values"])
        whole = torch.empty((value["of"], *rows.shape[1:]), dtype=rows.dtype)
        width = flat(whole[:1]).numel() if value["of"] else 0
        if width:
            memory = whole.view(-1).view(torch.uint8).view(-1, width).fill_(0xFF)
            for part in filter(None, (value, changed)):
                memory[self._tensor(part["rows"])] = flat(self._tensor(part["values"])).view(-1, width)
        return whole.to(device)

    def _tensor(self, value: Mapping[str, Any]) -> Tensor:
        name = value["tensor"]
        if name not in self._files:
            self._fail(LINES, f"names a tensor {name!r} that no call brought")
        file = self._files[name]
        try:
            with safe_open(self.folder / file, "pt") as opened:
                found: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            self._fail(file, f"cannot be read: {error}")
        found = found.view(_dtype(value["dtype"]))
        if list(found.shape) != value["shape"] or name_of(found) != name:
            self._fail(file, f"holds other bytes under {name} than were recorded")
        return found

    def _check(self, line: Mapping[str, Any]) -> None:
        wanted = {"use", "count", "contract", "version", "kernel", "call", "arguments", "outputs", "after", "new"}
        if not wanted <= line.keys():
            self._fail(LINES, f"has a line without {', '.join(sorted(wanted - line.keys()))}")
        contract = ops.CONTRACTS.get(line["contract"])
        if contract is None or contract.version != line["version"]:
            have = f"version {contract.version}" if contract else "none of that name"
            self._fail(
                LINES, f"has {line['contract']} in version {line['version']}, and this version of hal has {have}"
            )

    @cached_property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def _lines(self) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(self._text(LINES).splitlines()):
            try:
                line = json.loads(text)
            except ValueError as error:
                self._fail(LINES, f"has no JSON in line {number + 1}: {error}")
            if not isinstance(line, dict):
                self._fail(LINES, f"has something else than a call in line {number + 1}")
            yield line

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._text(name))
        except ValueError as error:
            self._fail(name, f"is no JSON: {error}")

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._fail(name, f"cannot be read: {error}")

    def _fail(self, name: str, what: str) -> NoReturn:
        raise CaptureError(what, where=str(self.folder / name), fix="record it again with `hal capture`")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found
