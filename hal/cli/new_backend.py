"""`hal new-backend`: an installable package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hal.cli.output import Json, show


def command(
    name: Annotated[str, typer.Argument(help="Of the backend: what users write in HAL_BACKEND.")],
    device_type: Annotated[str, typer.Option(help="What torch calls the device.")] = "cpu",
    emulated: Annotated[bool, typer.Option("--emulated", help="Add a stand-in for the device on host memory.")] = False,
    into: Annotated[Path | None, typer.Option(help="The folder to make. Default: hal-NAME.")] = None,
    json: Json = False,
) -> None:
    """Write an installable backend whose kernels are the references on your device; replace them one at a time."""
    from hal.kit.scaffold import scaffold

    folder = into or Path(f"hal-{name}")
    files = [str(path) for path in scaffold(name, folder, device_type=device_type, emulated=emulated)]
    backend = f"{name}@emulated" if emulated else name
    then = [f"pip install --no-build-isolation --editable {folder}", f"hal verify {backend} --quick"]
    lines = [*files, "", "Then:", *(f"  {line}" for line in then)]
    show({"files": files, "then": then}, json, lambda: Text("\n".join(lines)))
