"""Evidence: dated records that a kernel met its contract on a target, and the tier that follows from them.

Nobody claims a tier by hand. `hal verify` writes records; a backend's distribution may carry them as `evidence.json` in
its package, and runs on this machine are kept in the cache directory.

| tier | what is recorded of this version of the kernel and the contract, on this target |
|---|---|
| declared | nothing, or nothing complete |
| schema-checked | calls matched the vendor's published schemas; nothing was computed |
| emulated | every case passed on a stand-in for the chip |
| verified | every case passed on the chip itself |
| failed | a case failed, expectedly or not, whatever else passed |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hal import ops, plugins
from hal.errors import ConfigError
from hal.kernel import Kernel
from hal.target import Target

__all__ = ["FILE", "HOW", "TIERS", "Record", "cached", "of_backend", "read", "tier", "write"]

FILE = "evidence.json"
FORMAT = 1
HOW = ("schema", "emulated", "chip")
TIERS = ("declared", "schema-checked", "emulated", "verified", "failed")


@dataclass(frozen=True)
class Record:
    """One kernel's account on one target.

    Attributes:
        version, contract_version: of the kernel's and the contract's declaration; others make a record void.
        how: "chip", "emulated", or "schema".
        date: ISO day of the run.
        hal: version of hal.
        counts: cases by how they ended.
        complete: every planned case of a full run has an end.
        worst: largest margin of the judge, 1 is the bound.
    """

    kernel: str
    version: int
    contract: str
    contract_version: int
    target: str
    how: str
    date: str
    hal: str
    counts: dict[str, int]
    complete: bool
    worst: float = 0.0

    @property
    def tier(self) -> str:
        """What this record alone is worth."""
        if any(self.counts.get(end, 0) for end in ("failed", "crashed", "expected")):
            return "failed"
        if not self.complete or self.counts.get("skipped", 0) or not self.counts.get("passed", 0):
            return "declared"
        return {"schema": "schema-checked", "emulated": "emulated", "chip": "verified"}[self.how]


def cached(backend: str) -> Path:
    """Where runs on this machine are recorded: under XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hal" / "evidence" / f"{backend}.json"


def read(path: Path) -> tuple[Record, ...]:
    """The records of a file; none where there is no file.

    Raises:
        ConfigError: it is not what `write` writes.
    """
    if not path.exists():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this hal reads {FORMAT}")
        return tuple(_record(entry) for entry in content["records"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "delete it and run `hal verify` again"
        raise ConfigError(f"this evidence cannot be read: {error}", where=str(path), fix=fix) from error


def _record(entry: dict[str, Any]) -> Record:
    record = Record(**entry)
    kinds = {"str": str, "int": int, "bool": bool, "float": (int, float), "dict[str, int]": dict}
    for field in fields(Record):
        value = getattr(record, field.name)
        if not isinstance(value, kinds[str(field.type)]):  # type: ignore[arg-type]
            raise TypeError(f"{field.name} is {value!r}")
    if record.how not in HOW:
        raise ValueError(f"how is {record.how!r}, not one of {', '.join(HOW)}")
    if any(not isinstance(count, int) or count < 0 for count in record.counts.values()):
        raise ValueError(f"counts are {record.counts}")
    date.fromisoformat(record.date)
    return record


def write(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file; an older one of the same kernel, target and way is replaced."""
    kept = {(r.kernel, r.target, r.how): r for r in (*read(path), *records)}
    content = {"format": FORMAT, "records": [asdict(kept[key]) for key in sorted(kept)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def of_backend(backend: str) -> tuple[Record, ...]:
    """What a backend's distribution carries and what this machine has recorded.

    Raises:
        ConfigError: a file cannot be read.
    """
    package = package_of(backend)
    return (*(read(package / FILE) if package else ()), *read(cached(backend)))


def package_of(backend: str) -> Path | None:
    """The folder of an installed backend's package, found without importing it."""
    entry = plugins.installed().get(backend)
    spec = find_spec(entry.value.split(":")[0].split(".")[0]) if entry else None
    return Path(spec.origin).parent if spec and spec.origin else None


def tier(kernel: Kernel, target: Target, records: Iterable[Record]) -> str:
    """The tier of a kernel on a target: the best that current records are worth, unless the newest one failed.

    A kernel that delegates to the reference is at most declared.
    """
    version = ops.get(kernel.contract).version
    current = [
        record
        for record in records
        if (record.kernel, record.version, record.target) == (kernel.id, kernel.version, target.name)
        and (record.contract, record.contract_version) == (kernel.contract, version)
    ]
    newest = max((record.date for record in current), default="")
    tiers = {record.tier for record in current if record.tier != "failed" or record.date == newest}
    if kernel.delegates:
        tiers &= {"failed"}
    return max(tiers, key=TIERS.index, default="declared")
