"""`hal doctor`: what works here and what does not, on any machine, also where torch cannot be imported."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hal import environment, plugins
from hal.cli.backends import State, overview, states
from hal.cli.output import Json, show, table, version, working
from hal.errors import Broken, HalError
from hal.policy import Policy

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "transformers", "triton")
TIMEOUT = 120


def command(json: Json = False) -> None:
    """Say what works here: Python, libraries, environment, and the state of every backend."""
    with working("importing torch"):
        trouble = _import_trouble("torch")
    found = [_tried(state, trouble) for state in states()]
    data = {
        "hal": version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "torch": trouble or "imports",
        "environment": _environment(),
        "backends": [asdict(state) for state in found],
    }
    show(data, json, lambda: _view(data, found))


def _import_trouble(module: str) -> str:
    """Why `import module` fails, tried in a process of its own: a broken library may end its process."""
    code = f"import {module}"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"`{code}` takes more than {TIMEOUT} s"
    if done.returncode == 0:
        return ""
    last = done.stderr.strip().splitlines()[-1:]
    return last[0] if last else f"`{code}` ends with status {done.returncode}"


def _tried(state: State, torch: str) -> State:
    """A ready backend whose kernels really import; without torch none can."""
    if state.state != "ready":
        return state
    if torch:
        return replace(state, state="no torch", why=f"its kernels need torch: {torch}")
    loaded = plugins.load(state.name)
    for target in loaded.targets():
        for kernel in loaded.kernels(target):
            try:
                kernel.load()
            except Broken as error:
                return replace(state, state="Broken", why=str(error))
    return state


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _environment() -> dict[str, str]:
    """The variables that are set, or what is wrong with them."""
    try:
        Policy.current()
        return environment.read()
    except HalError as error:
        return {"error": str(error)}


def _view(data: dict[str, Any], found: list[State]) -> RenderableType:
    facts = table("", "")
    facts.show_header = False
    facts.add_row("hal", data["hal"])
    facts.add_row("python", f"{data['python']} on {data['system']}")
    for name, have in data["libraries"].items():
        facts.add_row(name, Text(have or "not installed", style="" if have else "dim"))
    if data["torch"] != "imports":
        facts.add_row("import torch", Text(f"fails: {data['torch']}", style="red"))
    for name, value in data["environment"].items():
        facts.add_row("environment" if name == "error" else name, Text(value, style="red" if name == "error" else ""))
    return Group(facts, overview(found))
