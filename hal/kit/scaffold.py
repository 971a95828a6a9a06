"""Writes a new backend's distribution from the template beside this file."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from hal import plugins
from hal.errors import ConfigError

TEMPLATE = Path(__file__).parent / "template"
NAME = re.compile(r"[a-z][a-z0-9]*")
EMULATED = "emulated.py"
"""The one file that is left out without `emulated`."""


def scaffold(name: str, into: Path, *, device_type: str = "cpu", emulated: bool = False) -> list[Path]:
    """Write the distribution `hal-<name>` into a new folder; the files, in order.

    Args:
        name: of the backend, what users write in HAL_BACKEND: lower-case letters and digits.
        into: the folder to make.
        device_type: what torch calls the device.
        emulated: add a stand-in for the device on host memory, for `HAL_BACKEND=<name>@emulated`.

    Raises:
        ConfigError: the name cannot be a backend's or is taken, or the folder exists.
    """
    where = "hal new-backend"
    if not NAME.fullmatch(name) or name in ("auto", "reference"):
        raise ConfigError(f"{name!r} cannot name a backend", where=where, fix="use lower-case letters and digits")
    if name in plugins.installed():
        raise ConfigError(f"a backend {name!r} is installed already", where=where, fix="choose another name")
    if into.exists():
        raise ConfigError(f"{into} exists already", where=where, fix="name a new folder with --into")
    if emulated and device_type == "cpu":
        raise ConfigError("the CPU needs no stand-in", where=where, fix="give --device-type, or leave out --emulated")
    words = {"name": name, "device_type": device_type, "emulated": emulated}
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True)
    written = []
    for source in sorted(path for path in TEMPLATE.rglob("*.jinja") if path.is_file()):
        if source.name.removesuffix(".jinja") == EMULATED and not emulated:
            continue
        inside = source.relative_to(TEMPLATE).as_posix().removesuffix(".jinja").replace("package", f"hal_{name}", 1)
        target = into / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(jinja.from_string(source.read_text(encoding="utf-8")).render(words), encoding="utf-8")
        written.append(target)
    return written
