"""Reads DeepSeek-V4 checkpoints: safetensors, one file or sharded, official or Hugging Face names, quantised or not.

Opening reads headers only, so a checkpoint larger than memory can be inspected; a tensor is read when it is asked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hal.errors import CheckpointError
from hal.models.deepseek_v4.config import DeepseekV4Config
from hal.models.deepseek_v4.config_reader import load
from hal.models.deepseek_v4.names import official_name
from hal.models.deepseek_v4.tensors import TensorSpec, tensors

_INDEX = "model.safetensors.index.json"
_PLAIN = ("BF16", "F16", "F32", "F64")
_CODES = {"fp8": ("F8_E4M3",), "fp4": ("I8", "U8")}
_SCALES = ("F8_E8M0", "F32", "U8")
_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64,
    "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(\.scale)?$")


@dataclass(frozen=True)
class Entry:
    """Where one tensor is: file, its name there, shape, safetensors dtype, first byte and number of bytes."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    bytes: int


class Checkpoint(Mapping[str, Tensor]):
    """A checkpoint's tensors by official name, read when asked for. `open` reads headers; `check` compares them."""

    def __init__(self, folder: Path, config: DeepseekV4Config, entries: dict[str, Entry]) -> None:
        self.folder, self.config, self.entries = folder, config, entries

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read the configuration and every header below `path`, a folder or a single `.safetensors` file.

        Raises:
            CheckpointError: no such checkpoint, a file is missing or truncated, or a tensor is there twice.
            ConfigError: the configuration is missing or wrong.
        """
        path = Path(path)
        folder = path.parent if path.is_file() else path
        if not folder.is_dir():
            raise CheckpointError("there is no such folder", where=str(path), fix="give the folder of a checkpoint")
        files = [path] if path.is_file() else _files(folder)
        entries: dict[str, Entry] = {}
        for file in files:
            for name, entry in _header(file):
                official = official_name(name)
                if official is None:
                    continue
                for each, where in _unstacked(official, entry):
                    if each in entries:
                        both = f"{entries[each].name!r} in {entries[each].file.name}, {where.name!r} in {file.name}"
                        raise CheckpointError(
                            f"`{each}` is there twice: {both}", where=str(folder), fix="delete one of them"
                        )
                    entries[each] = where
        config = load(folder)
        if not any(name.startswith("mtp.") for name in entries):
            config = replace(config, num_nextn_predict_layers=0)
        return cls(folder, config, entries)

    def check(self) -> None:
        """Compare every header with what the configuration asks for.

        Raises:
            CheckpointError: missing or extra tensors (all counted, the first named), a wrong shape or storage.
        """
        specs = {spec.name: spec for spec in tensors(self.config)}
        scales = {spec.scale_name: spec for spec in specs.values() if spec.kind in ("linear", "expert")}
        missing = [name for name in specs if name not in self.entries]
        extra = [name for name in self.entries if name not in specs and name not in scales]
        if missing or extra:
            parts = [
                f"{len(names)} {what} ({_some(names)})"
                for what, names in (("missing", missing), ("extra", extra))
                if names
            ]
            raise CheckpointError(
                f"its tensors are not those of its configuration: {' and '.join(parts)}",
                where=str(self.folder),
                fix="download it again, or correct config.json",
            )
        for name, spec in specs.items():
            self._check(name, spec)
        for name, spec in scales.items():
            if name in self.entries and self.entries[spec.name].dtype in _PLAIN:
                raise self._bad(name, "is a scale of a weight that is not quantised")

    def _check(self, name: str, spec: TensorSpec) -> None:
        entry, storage = self.entries[name], spec.storage(self.config)
        shape = (spec.shape[0], spec.shape[1] // 2) if entry.dtype in ("I8", "U8") and storage == "fp4" else spec.shape
        if entry.shape != shape:
            raise self._bad(name, f"has shape {list(entry.shape)}, the configuration asks for {list(shape)}")
        if spec.kind == "ids":
            if entry.dtype not in ("I32", "I64"):
                raise self._bad(name, f"is {entry.dtype}, expert ids are I32 or I64")
            return
        plain = spec.kind != "expert" or storage == "bf16"
        allowed = (*_CODES.get(storage, ()), *(_PLAIN if plain else ()))
        if entry.dtype not in allowed:
            raise self._bad(
                name,
                f"is stored as {entry.dtype}, the configuration says {storage} ({' or '.join(allowed)})",
                "correct `quantization_config` and `expert_dtype` in config.json",
            )
        if entry.dtype not in _PLAIN:
            scale = self.entries.get(spec.scale_name)
            if scale is None:
                raise self._bad(name, f"is {entry.dtype} but its scale `{spec.scale_name}` is missing")
            if scale.shape != spec.scale_shape(storage) or scale.dtype not in _SCALES:
                wanted = f"{list(spec.scale_shape(storage))} of {' or '.join(_SCALES)}"
                raise self._bad(spec.scale_name, f"is {list(scale.shape)} of {scale.dtype}, not {wanted}")

    def summary(self) -> dict[str, Any]:
        """What the headers say: files, tensors, parameters (scales excluded), bytes, and bytes by stored dtype."""
        by_dtype: Counter[str] = Counter()
        for entry in self.entries.values():
            by_dtype[entry.dtype] += entry.bytes
        parameters = sum(prod(spec.shape) for spec in tensors(self.config) if spec.name in self.entries)
        return {
            "folder": str(self.folder),
            "files": len({entry.file for entry in self.entries.values()}),
            "tensors": len(self.entries),
            "parameters": parameters,
            "bytes": sum(by_dtype.values()),
            "bytes_by_dtype": dict(by_dtype),
        }

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        buffer = bytearray(entry.bytes)
        try:
            with entry.file.open("rb") as file:
                file.seek(entry.offset)
                read = file.readinto(buffer)
        except OSError as error:
            raise self._bad(name, f"cannot be read: {error}", "download the file again") from error
        if read != entry.bytes or entry.dtype not in _DTYPES:
            raise self._bad(
                name, f"cannot be read: {read} of {entry.bytes} bytes of {entry.dtype}", "download it again"
            )
        tensor = torch.frombuffer(buffer, dtype=_DTYPES[entry.dtype]).view(entry.shape) if buffer else torch.empty(0)
        if name.endswith(".scale"):
            codes = tensor.view(torch.uint8) if tensor.dtype != torch.float32 else None
            if bool((tensor.isnan() if codes is None else codes == 0xFF).any()):
                raise self._bad(name, "contains NaN scales", "download the file again")
            if tensor.dtype == torch.uint8:
                tensor = tensor.view(torch.float8_e8m0fnu)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def _bad(self, name: str, problem: str, fix: str = "download it again, or correct config.json") -> CheckpointError:
        entry = self.entries[name]
        known_as = "" if entry.name == name else f" (there `{entry.name}`)"
        return CheckpointError(f"`{name}`{known_as} {problem}", where=str(entry.file), fix=fix)


def inspect(path: str | Path) -> dict[str, Any]:
    """`Checkpoint.summary` and the problems that `check` finds, without reading a tensor."""
    checkpoint = Checkpoint.open(path)
    try:
        checkpoint.check()
    except CheckpointError as error:
        return {**checkpoint.summary(), "problem": str(error)}
    return {**checkpoint.summary(), "problem": None}


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(
                "there is no *.safetensors file", where=str(folder), fix="give the folder of a checkpoint"
            )
        return files
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the index cannot be read: {error!r}", where=str(index), fix="download it again"
        ) from error
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} files are missing ({_some(missing)})",
            where=str(index),
            fix="download them",
        )
    return [folder / name for name in shards]


def _header(file: Path) -> Iterator[tuple[str, Entry]]:
    """Entries of a file. The library checks it; offsets are read here, its torch reader maps no file beyond memory."""
    try:
        with safe_open(str(file), framework="np"), file.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header: dict[str, Any] = json.loads(raw.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the file is truncated or damaged: {error}", where=str(file), fix="download it again"
        ) from error
    for name, fields in header.items():
        if name != "__metadata__":
            begin, end = fields["data_offsets"]
            yield name, Entry(file, name, tuple(fields["shape"]), fields["dtype"], 8 + length + begin, end - begin)


def _unstacked(name: str, entry: Entry) -> Iterator[tuple[str, Entry]]:
    """transformers stacks experts: cut such a tensor into the official per-expert ones, gate rows before up rows."""
    match = _STACKED.match(name)
    if match is None:
        yield name, entry
        return
    prefix, stack, scale = match.groups()
    experts, rows, *columns = entry.shape
    halves = ("w1", "w3") if stack == "gate_up_proj" else ("w2",)
    size = entry.bytes // max(1, experts * len(halves))
    for index, (expert, half) in enumerate(product(range(experts), halves)):
        part = replace(entry, shape=(rows // len(halves), *columns), offset=entry.offset + index * size, bytes=size)
        yield f"{prefix}.{expert}.{half}{scale or '.weight'}", part


def _some(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:3]) + (", ..." if len(names) > 3 else "")
